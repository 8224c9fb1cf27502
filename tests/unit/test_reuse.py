"""Results are reused for the same work, and only for that."""

from __future__ import annotations

from PIL import ImageCms

from shared.jobs import Retention
from tests.conftest import noise, png
from tests.unit import profiles
from tests.unit.job_bench import JobBench


def test_the_same_work_is_not_done_twice(bench: JobBench) -> None:
    """Another job with the same pixels reuses the results; other parameters or a deadline are other work."""
    bench.submit()
    first = bench.run()
    bench.submit("again", kernels=[2, 3, 4])
    again = bench.run("again:0")
    assert [result.reused for result in again.results] == [True, True, False]
    assert [result.kernel for result in again.results] == [2, 3, 4]
    assert again.results[0].losses == first.results[1].losses
    assert bench.records.result("again", 0)[2] == bench.records.result("j", 1)[2]
    bench.submit("other", iterations=4)
    assert not any(result.reused for result in bench.run("other:0").results)
    retention = Retention(bench.transitions, bench.records)
    retention.remove("j")
    assert retention.remove_files(10, 0) == 1
    files = bench.records.result("again", 0)[2].values()
    assert all(bench.store.has("again", digest) for digest in files)  # its own by now


def test_work_whose_files_are_gone_is_done_again(bench: JobBench) -> None:
    """For example after a move to another store: no result is reused without its files."""
    bench.submit()
    bench.run()
    lost = bench.records.result("j", 1)[2]["optimized.png"]
    (file,) = [path for path in bench.folder.rglob(lost) if path.parent.name == "j"]
    file.unlink()
    bench.submit("again", kernels=[2])
    assert not bench.run("again:0").results[0].reused
    assert all(bench.store.has("again", digest) for digest in bench.records.result("again", 0)[2].values())
    bench.submit("later", kernels=[2])
    assert bench.run("later:0").results[0].reused


def test_results_of_other_colours_are_not_reused(bench: JobBench) -> None:
    """Not after a profile that changes the pixels; after one that does not, they are reused."""
    bench.submit("plain")
    bench.run("plain:0")
    bench.submit("phone", images=[png(noise(), icc_profile=profiles.display_p3())])
    assert not any(result.reused for result in bench.run("phone:0").results)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    bench.submit("srgb", images=[png(noise(), icc_profile=srgb)])
    assert all(result.reused for result in bench.run("srgb:0").results)


def test_what_a_method_does_not_look_at_does_not_make_other_work(bench: JobBench) -> None:
    """Options that a method does not use do not prevent the reuse of its results."""
    with bench.runner() as runner:
        bench.submit("one", methods=["suppression", "lrp"], kernels=[1], effort="quick", rule="zplus")
        runner.run("interactive", "one:0")
        bench.submit("two", methods=["suppression", "lrp"], kernels=[1], effort="quick", rule="gamma_epsilon")
        runner.run("interactive", "two:0")
        bench.submit("three", methods=["suppression", "lrp"], kernels=[1], effort="standard", rule="zplus")
        runner.run("interactive", "three:0")
    again = [[result.reused for result in bench.records.whole(name).results] for name in ("one", "two", "three")]
    assert again == [[False, False], [True, False], [False, True]]
