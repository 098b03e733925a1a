import json

import pytest

from benchmarks import table


def line(seed, acc, *, commit="a" * 40, cores=2, **result):
    return {
        "name": "toy",
        "command": f"python -m toy --seeds {seed}",
        "commit": commit,
        "date": "2026-01-01T00:00:00+00:00",
        "machine": {
            "processor": "abacus",
            "cores": cores,
            "memory_gb": 1.0,
            "os": "none",
            "gpu": None,
        },
        "versions": {"python": "3.11.0", "deepclust": None},
        "seed": seed,
        "seconds": {"fit": 10.0 + seed, "total": 20.0},
        "peak_memory_mb": 100.0,
        "result": {"scores": {"dec": {"acc": acc, "nmi": 0.5, "ari": 0.25}}, **result},
    }


@pytest.fixture
def write(tmp_path):
    def write(*lines):
        path = tmp_path / "toy.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def row(text, start):
    [found] = [row for row in text.splitlines() if row.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_mean_sample_deviation_and_min_over_seeds(write):
    [lines] = table.read(write(line(1, 0.9), line(0, 0.7), line(2, 0.8)))
    text = table.render(lines)
    # sd of 0.7, 0.8, 0.9 by hand: sqrt((0.01 + 0 + 0.01) / 2) = 0.1
    assert row(text, "dec")[1:4] == ["3", "0.8000 ± 0.1000", "0.7000"]
    assert row(text, "dec")[4:] == ["0.5000 ± 0.0000", "0.5000", "0.2500 ± 0.0000", "0.2500"]
    assert row(text, "fit") == ["fit", "3", "11.0 ± 1.0", "10.0", "12.0"]
    assert row(text, "peak memory, MB") == ["peak memory, MB", "3", "100 ± 0", "100", "100"]
    assert "seeds 0, 1, 2" in text
    assert "abacus, 2 cores" in text


def test_one_seed_has_no_spread(write):
    [lines] = table.read(write(line(0, 0.7)))
    assert row(table.render(lines), "dec")[1:4] == ["1", "0.7000", "0.7000"]


def test_commits_and_machines_are_never_mixed(write, capsys):
    path = write(
        line(0, 0.1),
        line(0, 0.2, commit="b" * 40),
        line(1, 0.3, commit="b" * 40, cores=64),
        line(1, 0.4),
    )
    groups = table.read(path)
    found = [[item["result"]["scores"]["dec"]["acc"] for item in group] for group in groups]
    assert found == [[0.1, 0.4], [0.3], [0.2]]  # by their last line, newest first

    assert table.main([str(path)]) == 0
    assert capsys.readouterr().out.count("### toy") == 1
    assert table.main([str(path), "--all"]) == 0
    assert capsys.readouterr().out.count("### toy") == 3


def test_a_seed_recorded_again_counts_once(write):
    [[only]] = table.read(write(line(0, 0.1), line(0, 0.2)))
    assert only["result"]["scores"]["dec"]["acc"] == 0.2


def test_evidence_has_a_row_for_each_seed(write):
    evidence = {
        "n_iter": 280,
        "refreshes": 3,
        "changed": [0.5, 0.2, 0.0005],
        "labels_moved": 0.25,
        "encoder_change": 0.125,
    }
    nothing = {
        "n_iter": 0,
        "refreshes": 0,
        "changed": [],
        "labels_moved": 0.0,
        "encoder_change": 0.0,
    }
    [lines] = table.read(write(line(0, 0.7, evidence=evidence), line(1, 0.7, evidence=nothing)))
    text = table.render(lines)
    assert row(text, "0") == ["0", "280", "3", "0.5000", "0.0005", "0.2500", "0.1250"]
    assert row(text, "1") == ["1", "0", "0", "", "", "0.0000", "0.0000"]


def test_lines_of_plain_commands_have_seconds_only(write):
    plain = line(0, 0.0) | {"seed": None, "result": {}}
    [lines] = table.read(write(plain))
    text = table.render(lines)
    assert "ACC" not in text
    assert row(text, "total") == ["total", "1", "20.0", "20.0", "20.0"]


def test_nothing_recorded_says_what_to_do(tmp_path, capsys):
    (tmp_path / "toy.jsonl").touch()
    assert table.main([str(tmp_path / "toy.jsonl")]) == 1
    assert "make bench" in capsys.readouterr().err
