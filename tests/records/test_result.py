"""What a finished run says of itself in a line."""

import dataclasses

import pytest

from lgfast.records.result import Result

RESULT = Result("run", 43.0, 80.0, 42.0, 3, "validation", 44.0, 10.0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "student 43.00 %"),
        ({"teacher_test_top1": 47.5}, "student 43.00 %, its teacher 47.50 %: 4.50 points behind"),
        ({"teacher_test_top1": 41.25}, "student 43.00 %, its teacher 41.25 %: 1.75 points ahead"),
        ({"teacher_test_top1": 43.0}, "student 43.00 %, its teacher 43.00 %: as good"),
        ({"class_top1": {"a": 43.0}}, "student 43.00 %"),
        (
            {"class_top1": {"oak": 90.0, "ivy": 20.0, "elm": 0.0, "fir": 20.0, "yew": 30.0}},
            "student 43.00 %; worst classes: elm 0 %, fir 20 %, ivy 20 %",
        ),
        ({"class_top1": {"a\x1b[31m": 1.0}}, r"student 43.00 %; worst classes: a\x1b[31m 1 %"),
    ],
)
def test_verdict(changes, expected):
    assert dataclasses.replace(RESULT, **changes).verdict() == expected
