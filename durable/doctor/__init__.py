"""The doctor: looks at all runs of a deployment, straight in its Redis, and tells what must not be."""

from durable.doctor.doctor import Doctor
from durable.doctor.finding import Finding

__all__ = ["Doctor", "Finding"]
