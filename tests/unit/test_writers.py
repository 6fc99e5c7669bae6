"""What people are told about files that somebody has open for writing."""

from __future__ import annotations

from modamafs.sealing.writers import Writer, describe

ALICE = Writer(b"scan.h5", 4711, "alice", "python3 measure.py")


def test_a_file_and_its_writer() -> None:
    assert describe([b"scan.h5"], [ALICE]) == "scan.h5 by python3 measure.py (pid 4711, alice)"


def test_a_process_that_is_not_seen_is_said_to_be() -> None:
    assert describe([b"scan.h5"], []) == "scan.h5 (its process can't be seen from here)"
    assert describe([b"1", b"scan.h5"], [ALICE]) == (
        "1 (its process can't be seen from here), scan.h5 by python3 measure.py (pid 4711, alice)"
    )


def test_several_writers_of_a_file_are_all_named() -> None:
    bob = Writer(b"scan.h5", 4712, "bob", "sh")
    assert describe([b"scan.h5"], [ALICE, bob]) == (
        "scan.h5 by python3 measure.py (pid 4711, alice), scan.h5 by sh (pid 4712, bob)"
    )


def test_no_more_than_three_are_named() -> None:
    words = describe([b"%d" % number for number in range(5)], [])
    assert words.count("can't be seen") == 3
    assert words.endswith(" and 2 more")
    assert " and " not in describe([b"1", b"2", b"3"], [])


def test_it_is_one_line_of_printable_characters() -> None:
    words = describe([b"new\nline \xff \x1b[31m \xc2\xb5 \xe2\x80\xa8"], [])
    assert words.startswith(r"new\nline \xff \x1b[31m µ \u2028 (")
