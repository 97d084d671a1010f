"""The results screen under keys: table, pictures, samples, bundles."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from results_app import opened, read, screen, told, typed
from results_support import failures, quantization, report, robustness, write_bundle
from textual.widgets import DataTable, Static
from tui_support import run, text_of, until

from edgekit.app.screens.ascii import in_ascii
from edgekit.app.views import results

SIZES = [(80, 24), (160, 50)]


@pytest.mark.parametrize("size", SIZES)
def test_variants_stand_in_a_table_with_the_verdict_above(tmp_path: Path, size: tuple[int, int]) -> None:
    write_bundle(tmp_path / "bundles" / "good", when=2_000)
    write_bundle(tmp_path / "bundles" / "older", passed=False, when=1_000)

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=size, notifications=True) as pilot:
            shown = await read(pilot)
            await until(pilot, lambda: "✓ PASS\n" in text_of(found) or "✓ PASS " in text_of(found))
            text = text_of(found)
            assert "good  ✓ PASSED: 4 of 4 gates passed" in text
            assert "$ edgekit verify" in text and str(tmp_path) in shown.shell_command
            for words in ("tuned", "100", "75.0", "0.0100", "✓ PASS", "P Promote", "q Quit"):
                assert words in text, words
            assert "90 [81..99.0]" in text  # below the table
            assert shown.query_one("#pictures").display == (size[0] == 160)
            assert ("100 MiB, limit 240" in text and "from its input" in text) == (size[0] == 160)

    run(look())


def test_failed_gates_are_told_at_once(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles" / "bad", passed=False)

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=(80, 24), notifications=True) as pilot:
            await read(pilot)
            await until(pilot, lambda: "✗ FAIL gguf.mean_kld" in text_of(found))
            text = text_of(found)
            assert "✗ NOT PASSED: 3 of 4 gates passed" in text
            assert "limit 0.005" in text and "quantize.gguf" in text

    run(look())


@pytest.mark.parametrize("size", SIZES)
def test_v_shows_and_hides_the_pictures(tmp_path: Path, size: tuple[int, int]) -> None:
    write_bundle(tmp_path / "bundles" / "good")

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=size, notifications=True) as pilot:
            shown = await read(pilot)
            pane = shown.query_one("#pictures")
            if size[0] == 160:
                await pilot.press("v")
                await until(pilot, lambda: not pane.display)
            await pilot.press("v")
            await until(pilot, lambda: "size and drift, as shares" in text_of(found))
            text = text_of(found)
            assert "x onnx" in text and "variant" in text and "100 MiB, limit 240" in text
            assert ("gates of gguf" in text) == (size[0] == 160)
            pane.scroll_end(animate=False)
            await until(pilot, lambda: "no file's stage is over it" in text_of(found))
            assert "from its input 2" in text_of(found)
            await pilot.press("v")
            await until(pilot, lambda: "no file's stage" not in text_of(found))

    run(look())


def test_the_bits_of_each_tensor_are_a_picture_in_ascii_too(tmp_path: Path) -> None:
    artifacts = report()["artifacts"]
    artifacts[0]["quantization"] = quantization()
    write_bundle(tmp_path / "bundles" / "good", artifacts=artifacts)

    async def look() -> None:
        found = opened(tmp_path, ascii=True)
        async with found.run_test(size=(80, 24)) as pilot:
            shown = await read(pilot)
            await pilot.press("v")
            shown.query_one("#pictures").scroll_end(animate=False)
            await until(pilot, lambda: "blk.2.ffn_down" in text_of(found))
            text = text_of(found)
            assert text.isascii() and "attn_q     4.4 4.50" in text and "ffn_down   848 7.17" in text
            strips = found.screen._compositor.render_strips()
            row = next(strip for strip in strips if "ffn_down   848" in strip.text)
            colours = [segment.style.bgcolor for segment in row if segment.text in ("8", "4")]
            assert colours[0] == colours[2] != colours[1]

    run(look())


def test_pictures_have_their_width_where_a_bundle_takes_long_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The screen is laid out before there is a picture."""
    write_bundle(tmp_path / "bundles" / "good")
    load = results.load
    monkeypatch.setattr(results, "load", lambda bundle: (time.sleep(0.5), load(bundle))[1])

    async def look() -> None:
        async with opened(tmp_path).run_test(size=(160, 50)) as pilot:
            shown = await read(pilot)
            bar = max(
                str(shown.query_one("#drawn", Static).render()).split(), key=lambda word: word.count("█")
            )
            assert len(bar) > 20, bar

    run(look())


@pytest.mark.parametrize("size", SIZES)
def test_samples_side_by_side_with_what_changed(tmp_path: Path, size: tuple[int, int]) -> None:
    write_bundle(tmp_path / "bundles" / "good")

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=size, notifications=True) as pilot:
            shown = await read(pilot)
            await pilot.press("s")
            await until(pilot, lambda: "sample 1 of 2 that differ" in text_of(found))
            text = text_of(found)
            assert "at [-work-]{+war+}" in text and "2 same  1 changed  0 better  1 worse" in text
            assert "Where is Bob?" in text and "im_start" not in text
            beside = [line for line in text.splitlines() if "tuned" in line and "base" in line]
            assert bool(beside) == (size[0] == 160)
            assert found.screen.shell_command.startswith("edgekit compare ")
            assert found.screen.document()["counts"]["gguf"]["worse"] == 1
            await pilot.press("n")
            await until(pilot, lambda: "sample 2 of 2" in text_of(found))
            await pilot.press("n")
            await until(pilot, lambda: "sample 1 of 2" in text_of(found))
            await pilot.press("p", "a")
            await until(pilot, lambda: "sample 4 of 4" in text_of(found))
            await pilot.press("slash")
            await typed(pilot, "nowhere")
            await until(pilot, lambda: "No sample has 'nowhere'" in text_of(found))
            await pilot.press("escape")
            await until(pilot, lambda: "variant" in text_of(found))
            assert shown.shell_command.startswith("edgekit verify ")
            assert isinstance(found.focused, DataTable)

    run(look())


def test_two_variants_beside_each_other(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles" / "good")

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=(80, 24), notifications=True) as pilot:
            shown = await read(pilot)
            await pilot.press("space", "down", "space")
            await until(pilot, lambda: "compare" in shown.shell_command)
            assert "gguf.jsonl" in shown.shell_command and "onnx.jsonl" in shown.shell_command
            assert text_of(found).count("*") >= 2
            await pilot.press("d")
            await until(pilot, lambda: "second from first" in text_of(found))
            assert "(+100%) worse" in text_of(found) and "points better" in text_of(found)
            await pilot.press("escape")
            await until(pilot, lambda: "second from first" not in text_of(found))

    run(look())


def test_another_bundle_is_chosen_and_two_are_compared(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles" / "good", when=2_000)
    write_bundle(tmp_path / "bundles" / "worse", passed=False, when=1_000)
    (write_bundle(tmp_path / "bundles" / "torn", when=500) / "report.json").write_text("{")

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "UNREADABLE" in text_of(found))  # the one that was written last
            await pilot.press("b")
            await until(pilot, lambda: "d compare" in text_of(found))
            lines = text_of(found)
            assert lines.index("? UNKNOWN") < lines.index("✓ PASS ") < lines.index("✗ FAIL")
            await pilot.press("down", "d")  # nothing can be compared with the torn one
            await until(pilot, lambda: "open another one first" in told(found))
            await pilot.press("b")
            await until(pilot, lambda: "d compare" in text_of(found))
            await pilot.press("down", "down", "enter")
            await until(pilot, lambda: "worse  ✗ NOT PASSED" in text_of(found))
            await pilot.press("b")
            await until(pilot, lambda: "d compare" in text_of(found))
            await pilot.press("down", "d")
            await until(pilot, lambda: "second from first" in text_of(found))
            assert "differs" in text_of(found)

    run(look())


def test_a_damaged_report_is_a_sentence_with_the_next_step(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundles" / "torn")
    (bundle / "report.json").write_text('{"schema": "edgekit.report/1", "target": ')

    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "is damaged" in text_of(found))
            text = " ".join(text_of(found).split())
            assert "UNREADABLE" in text and "Next: edgekit verify" in text
            assert screen(found).document() is None
            await pilot.press("s", "v", "d", "x", "space")  # nothing of it makes sense here
            await pilot.pause()
            assert "is damaged" in text_of(found)
            # it is mended while one looks
            (bundle / "report.json").write_text(json.dumps(report()))
            await read(pilot)

    run(look())


def test_without_a_bundle_it_says_how_to_build_one(tmp_path: Path) -> None:
    async def look() -> None:
        found = opened(tmp_path)
        async with found.run_test(size=(80, 24), notifications=True) as pilot:
            await until(pilot, lambda: "There is no bundle in" in text_of(found))
            assert screen(found).shell_command.startswith("edgekit build ")
            await pilot.press("b")
            await pilot.press("P")
            await until(pilot, lambda: "none can be promoted" in told(found))
            write_bundle(tmp_path / "bundles" / "first")  # a build has ended
            await read(pilot)

    run(look())


def test_all_of_it_in_ascii(tmp_path: Path) -> None:
    measured = {"failures": {"gguf": failures()}, "robustness": {"gguf": robustness()}}
    write_bundle(tmp_path / "bundles" / "good", passed=False, **measured)

    async def look() -> None:
        found = opened(tmp_path, ascii=True)
        async with found.run_test(size=(80, 24), notifications=True) as pilot:
            await read(pilot)
            for key in ("", "v", "v", "v", "v", "s"):
                if key:
                    await pilot.press(key)
                    await pilot.pause()
                assert text_of(found).isascii(), text_of(found)

    run(look())
    assert in_ascii("2 × “at war” instead") == '2 x "at war" instead'
