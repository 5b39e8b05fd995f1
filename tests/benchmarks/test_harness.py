"""The timing rules: what is run when, which samples count, when it stops."""

import json

import pytest

from acdc_kernels.benchmarks.harness import ROW_KEYS, Budget, Timing, disturbed, interleave, rows, table, write_json


class Machine:
    """A clock that moves only when a contender runs, and a switch counter that its disturbances raise."""

    def __init__(self):
        self.now, self.switched, self.log = 0.0, 0, []

    def contender(self, name, seconds, dirty=()):
        """Takes `seconds[i]` at its i-th run (the last one goes on) and is disturbed at the runs in `dirty`."""
        runs = iter(range(10**6))

        def call():
            run = next(runs)
            self.log.append(name)
            self.now += seconds[min(run, len(seconds) - 1)]
            self.switched += run in dirty

        return call

    def time(self, contenders, budget, **options):
        clock, switches = (lambda: self.now), (lambda: self.switched)
        return interleave(contenders, budget, clock=clock, switches=switches, **options)


WARM_UPS = 2  # one call to warm up, one to see how long a call takes


def test_median_of_the_clean_samples():
    machine = Machine()
    call = machine.contender("a", [1, 1, 1.0, 9.0, 2.0, 9.0, 3.0], dirty={WARM_UPS + 1, WARM_UPS + 3})
    timing = machine.time({"a": call}, Budget(clean=3, rounds=10, seconds=1e9))["a"]
    assert (timing.ms, timing.clean, timing.samples) == (2000.0, 3, 5)


@pytest.mark.parametrize(
    ("samples", "want"),
    [
        ([5.0, 4.0, 3.0, 2.0, 1.0, 6.0], 2.0),  # a third is two: at least three are used
        ([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 9.0, 9.0, 9.0], 2.5),
        ([5.0], 5.0),
    ],
)
def test_too_few_clean_samples_use_the_fastest_third(samples, want):
    machine = Machine()
    call = machine.contender("a", [1, 1, *samples], dirty=range(100))
    timing = machine.time({"a": call}, Budget(clean=3, rounds=len(samples), seconds=1e9))["a"]
    assert (timing.ms, timing.clean, timing.samples) == (want * 1e3, 0, len(samples))


def test_every_round_runs_every_contender_once_in_changing_order():
    machine = Machine()
    contenders = {name: machine.contender(name, [1.0]) for name in "abc"}
    machine.time(contenders, Budget(clean=20, rounds=20, seconds=1e9))
    timed = machine.log[WARM_UPS * 3 :]
    rounds = ["".join(timed[i : i + 3]) for i in range(0, len(timed), 3)]
    assert len(rounds) == 20
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 3


def test_fast_contenders_are_called_many_times_a_sample():
    machine = Machine()
    contenders = {"slow": machine.contender("slow", [0.004]), "fast": machine.contender("fast", [0.0001])}
    timings = machine.time(contenders, Budget(clean=3, rounds=3, seconds=1e9), sample_seconds=0.002)
    assert machine.log.count("fast") == WARM_UPS + 3 * 20
    assert machine.log.count("slow") == WARM_UPS + 3
    assert timings["fast"].ms == pytest.approx(0.1)


def test_one_contender_twice_shows_no_difference_on_a_quiet_machine():
    machine = Machine()
    call = machine.contender("a", [1.0])
    timings = machine.time({"a": call, "again": call}, Budget(clean=5, rounds=5, seconds=1e9))
    assert timings["a"] == timings["again"] == Timing(ms=1000.0, spread=0.0, clean=5, samples=5)


@pytest.mark.parametrize(
    ("budget", "samples"),
    [
        (Budget(clean=4, rounds=50, seconds=1e9), 4),
        (Budget(clean=100, rounds=6, seconds=1e9), 6),
        (Budget(clean=100, rounds=50, seconds=7.5, fewest_rounds=2), 8),
        (Budget(clean=100, rounds=50, seconds=0.0, fewest_rounds=3), 3),
    ],
    ids=["enough_clean", "rounds", "seconds", "fewest_rounds"],
)
def test_stops_at_the_first_limit(budget, samples):
    machine = Machine()
    assert machine.time({"a": machine.contender("a", [1.0])}, budget)["a"].samples == samples


def test_garbage_collection_is_off_while_timing_and_on_again_after():
    import gc

    seen = []
    interleave({"a": lambda: seen.append(gc.isenabled())}, Budget(clean=1, rounds=1))
    assert gc.isenabled()
    assert set(seen) == {False}


def test_no_contenders_is_an_error():
    with pytest.raises(ValueError, match="contenders must not be empty"):
        interleave({})


FACTS = {
    "op": "topk", "case": "tiny/global", "pattern": "unstructured", "sparsity": 0.9, "dtype": "float32", "threads": 2,
    "device": "cpu", "backend": "native generic",
}  # fmt: skip
TIMINGS = {
    "ours": Timing(2.0, 0.1, 9, 9),
    "peer": Timing(10.0, 0.2, 3, 9),
    "floor": Timing(1.0, 0.0, 9, 9),
}


def test_a_row_for_each_peer():
    made = rows(TIMINGS, roofline="floor", facts=FACTS)
    assert [row["peer"] for row in made] == ["peer", "floor"]
    for row, peer_ms, speedup in zip(made, (10.0, 1.0), (5.0, 0.5), strict=True):
        assert tuple(row)[: len(ROW_KEYS)] == ROW_KEYS
        assert {key: row[key] for key in FACTS} == FACTS
        assert (row["ours_ms"], row["peer_ms"], row["speedup"]) == (2.0, peer_ms, speedup)
        assert (row["roofline_ms"], row["of_roofline"]) == (1.0, 2.0)


def test_table_names_every_peer_and_the_distance_to_the_roofline():
    text = table(rows(TIMINGS, roofline="floor", facts=FACTS))
    assert "topk  tiny/global  90% unstructured  float32  2 threads  cpu" in text
    assert "2.00x of the roofline's time" in text
    assert [line.split()[0] for line in text.splitlines()[1:]] == ["ours", "peer", "floor"]


@pytest.mark.parametrize(("clean", "want"), [(3, False), (2, True), (0, True)])
def test_too_few_clean_samples_are_told(clean, want):
    timings = TIMINGS | {"peer": Timing(10.0, 0.2, clean, 9)}
    assert disturbed(rows(timings, roofline="floor", facts=FACTS)) == want


def test_json_holds_machine_and_rows(tmp_path):
    made = rows(TIMINGS, roofline="floor", facts=FACTS)
    file, link = tmp_path / "a.json", tmp_path / "link.json"
    link.symlink_to(file)
    for complete in (False, True):
        write_json(link, {"cpu": "x"}, made, peak_bytes=5, complete=complete)
        want = {"machine": {"cpu": "x"}, "complete": complete, "peak_bytes": 5, "rows": made}
        assert json.loads(file.read_text()) == want
    assert link.is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "link.json"]


def test_json_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError("disk full")

    file = tmp_path / "a.json"
    write_json(file, {}, [], peak_bytes=5, complete=True)
    before = file.read_bytes()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_json(file, {}, [{"case": "x"}], peak_bytes=6, complete=True)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
