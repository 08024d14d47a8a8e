from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from durable.sse import Frame, Parser


def parse(*pieces: bytes) -> list[Frame]:
    parser = Parser()
    return [frame for piece in pieces for frame in parser.feed(piece)]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def test_a_frame_has_data_type_and_id() -> None:
    assert parse(b"id: 7\nevent: note\ndata: hello\n\n") == [Frame("hello", "note", "7")]


def test_lines_may_end_in_lf_cr_or_crlf() -> None:
    expected = [Frame("a\nb", id="1"), Frame("c", id="1")]
    for end in (b"\n", b"\r", b"\r\n"):
        lines = (b"id: 1", b"data: a", b"data: b", b"", b"data: c", b"", b"")
        assert parse(end.join(lines)) == expected


def test_a_frame_is_given_out_with_its_blank_line_even_when_that_ends_in_cr() -> None:
    parser = Parser()
    assert parser.feed(b"data: a\r\n\r") == [Frame("a")]
    assert parser.feed(b"\ndata: b\r\n\r\n") == [Frame("b")]


def test_comments_unknown_fields_and_empty_frames_give_nothing() -> None:
    assert parse(b": ping\n\n:\n\nother: x\n\nid: 3\n\nevent: lost\n\n") == []


def test_one_space_after_the_colon_is_dropped_and_no_more() -> None:
    assert parse(b"data:  a\ndata:b\ndata\n\n") == [Frame(" a\nb\n")]


def test_an_id_stays_until_the_next_one_and_a_nul_in_it_is_refused() -> None:
    frames = parse(b"id: 1\ndata: a\n\ndata: b\n\nid: 2\0\ndata: c\n\nid\ndata: d\n\n")
    assert [frame.id for frame in frames] == ["1", "1", "1", ""]


def test_a_byte_order_mark_is_skipped_only_at_the_start() -> None:
    assert parse(b"\xef", b"\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n") == [Frame("a")]


def test_what_the_end_cuts_is_no_frame() -> None:
    assert parse(b"data: a\n\ndata: b\n") == [Frame("a")]


def test_the_servers_wish_for_a_pause_is_kept_and_nonsense_is_not() -> None:
    parser = Parser()
    parser.feed(b"retry: 250\nretry: -1\nretry: soon\n")
    assert parser.retry_ms == 250


def test_line_separators_of_unicode_do_not_end_a_line() -> None:
    text = "a\u2028b\u0085c\x0bd\x0c"
    assert parse(f"data: {text}\n\n".encode()) == [Frame(text)]


def test_bytes_that_are_no_utf_8_do_not_stop_the_stream() -> None:
    assert parse(b"data: a\xff\n\ndata: b\n\n") == [Frame("a\ufffd"), Frame("b")]


TEXT = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))
LINE_ENDS = st.sampled_from([b"\n", b"\r", b"\r\n"])


@given(st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=5), LINE_ENDS, st.lists(st.integers(0)))
def test_what_was_written_is_read_wherever_the_network_cuts(
    written: list[list[str]], end: bytes, places: list[int]
) -> None:
    stream = b"".join(
        b"".join((f"id: {number}".encode(), end, *(b"data: " + line.encode() + end for line in lines), end))
        for number, lines in enumerate(written, 1)
    )
    expected = [Frame("\n".join(lines), id=str(number)) for number, lines in enumerate(written, 1)]
    assert parse(*cut(stream, places)) == expected


PIECES = st.sampled_from([b"data", b"id", b"event", b"retry", b":", b" ", b"\r", b"\n", b"\r\n", b"1", b"\xef\xbb\xbf"])


@given(st.lists(PIECES | st.binary(max_size=4)).map(b"".join), st.lists(st.integers(0)))
def test_any_bytes_give_the_same_frames_in_one_piece_as_in_many(stream: bytes, places: list[int]) -> None:
    assert parse(*cut(stream, places)) == parse(stream)
