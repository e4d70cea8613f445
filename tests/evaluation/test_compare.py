"""Results side by side, and which differences between them make numbers incomparable."""

import copy
import json

import pytest

from diffusers_sde.evaluation.compare import compare_provenance, flatten, read_result, run_compare

RESULT = {
    "metrics": {
        "loss": {"value": 0.1, "standard_error": 0.01},
        "fid": {"value": 3.25},
        "kid": {"value": 0.002, "std": 0.0004},
    },
    "provenance": {
        "seed": 0,
        "model": {"name": "a", "weights_sha256": "1" * 64},
        "loss": {"split": "test", "num_levels": 10, "num_images": 100},
        "samples": {"num_images": 50000, "images_sha256": "2" * 64, "source": {"sampler": {"steps": 1000}}},
        "extractor": {"name": "inception", "sha256": "3" * 64},
        "reference": {"sha256": "4" * 64, "num_images": 50000},
    },
    "notes": [],
}


def changed(path, value):
    result = copy.deepcopy(RESULT)
    *above, last = path.split("/")
    place = result
    for key in above:
        place = place[key]
    place[last] = value
    return result


def test_the_same_provenance_gives_no_warning():
    assert compare_provenance([RESULT, copy.deepcopy(RESULT)]) == []
    assert compare_provenance([RESULT, changed("provenance/samples/images_sha256", "5" * 64)]) == []


@pytest.mark.parametrize(
    "path, value, expected",
    [
        ("samples/num_images", 1000, "warning: samples.num_images differs (50000, 1000): fid cannot be compared."),
        (
            "extractor/sha256",
            "6" * 64,
            "warning: extractor.sha256 differs (333333333333..., 666666666666...): fid, kid cannot be compared.",
        ),
        (
            "reference/sha256",
            "x",
            "warning: reference.sha256 differs (444444444444..., x): fid, kid cannot be compared.",
        ),
        ("loss/split", "train", "warning: loss.split differs (test, train): loss cannot be compared."),
        ("loss/num_images", 50, "note: loss.num_images differs (100, 50)."),
        ("samples/source/sampler/steps", 10, "note: samples.source.sampler.steps differs (1000, 10)."),
        ("seed", 1, "note: seed differs (0, 1)."),
        ("extra", True, "note: extra differs (-, True)."),
    ],
)
def test_each_difference_is_named_and_weighed(path, value, expected):
    assert compare_provenance([RESULT, changed(f"provenance/{path}", value)]) == [expected]


def test_only_metrics_in_common_are_spoiled_and_warnings_come_first():
    other = changed("metrics", {"fid": {"value": 4.0}})
    other["provenance"]["seed"] = 1
    other["provenance"]["extractor"]["sha256"] = "6" * 64
    third = changed("provenance/samples/num_images", 100)
    lines = compare_provenance([RESULT, other, third])
    assert [line.split(":")[0] for line in lines] == ["warning", "warning", "note"]
    assert "samples.num_images differs (50000, 50000, 100): fid cannot" in lines[0]
    assert lines[1].endswith("fid cannot be compared.")


def test_the_table_and_the_files(tmp_path, capsys):
    for name, result in (("a", RESULT), ("b", changed("metrics/fid", {"value": 7.5}))):
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    assert run_compare([tmp_path / "a.json", tmp_path / "b.json"]) == []
    text = capsys.readouterr().out
    assert "3.2500" in text and "7.5000" in text and "0.0020 +- 0.0004" in text and "same throughout" in text
    with pytest.raises(ValueError, match="needs two results or more; 1 given"):
        run_compare([tmp_path / "a.json"])
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not a result of `diffusers-sde evaluate`"):
        read_result(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("nothing")
    with pytest.raises(ValueError, match="is not JSON"):
        read_result(tmp_path / "c.json")


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {}}, "d": [2]}) == {"a.b": 1, "a.c": {}, "d": [2]}
