"""Why a run stands where it stands."""

from durable.diagnosis.causes import diagnose
from durable.diagnosis.circumstances import Circumstances, examine
from durable.diagnosis.standing import views

__all__ = ["Circumstances", "diagnose", "examine", "views"]
