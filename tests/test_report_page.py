"""The report's page and figures: they stand alone, and whatever comes from files is text."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from hpcasync.errors import UsageError
from hpcasync.report import plot
from hpcasync.report.html import tag
from hpcasync.report.main import report
from tests.report_runs import document, write

HOSTILE = "<script>alert(1)</script> $x$ \u202e\x1b[31m & \ud800"


def test_everything_from_files_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, document("base"))
    bad = document(HOSTILE, HOSTILE, argv=[HOSTILE], hosts=[{"rank": HOSTILE, HOSTILE: HOSTILE}], job="digits")
    bad["git"] = {"commit": HOSTILE}
    bad["environment"] = bad["packages"] = {HOSTILE: HOSTILE}
    bad["strategy"]["options"] = {HOSTILE: [HOSTILE, {HOSTILE: None}]}
    write(tmp_path, bad)
    html = report([tmp_path]).read_text(encoding="utf-8")
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 8
    assert not set("\x1b\u202e") & set(html + capsys.readouterr().out)


def test_tag_escapes_text_and_attributes() -> None:
    assert tag("p", "a<b", tag("i", "&"), class_='"x"') == '<p class="&quot;x&quot;">a&lt;b<i>&amp;</i></p>'


def test_the_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    write(tmp_path, document("a"))
    write(tmp_path, document("b", "stale"))
    html = report([tmp_path]).read_text()
    without_namespaces = re.sub(r'xmlns(:xlink)?="[^"]*"', "", html)
    assert not re.search(r"https?:|//|<link|<script|<img|@import|url\((?!#)", without_namespaces)
    assert html.count("<svg") == 4
    assert "currentColor" in html and "#0a0" not in html
    identities = re.findall(r' id="([^"]+)"', html)
    assert len(identities) == len(set(identities))


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    write(tmp_path, document("a"))
    write(tmp_path, document("b", "stale"))
    assert report([tmp_path]).read_bytes() == report([tmp_path]).read_bytes()


def test_the_page_is_written_where_it_was_asked_for_and_replaces_only_pages(tmp_path: Path) -> None:
    folder = write(tmp_path, document("a"))
    target = tmp_path / "page.html"
    assert report([folder], target) == target == report([folder], target)
    assert report([folder]) == folder / "report.html"
    before = (folder / "run.json").read_bytes()
    with pytest.raises(UsageError, match="exists and is not a report"):
        report([folder], folder / "run.json")
    assert (folder / "run.json").read_bytes() == before
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        report([folder], tmp_path)
    with pytest.raises(UsageError, match="is not a folder; the page cannot be written there"):
        report([folder], tmp_path / "absent" / "page.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "page.html"]


def test_labels_of_curves_that_end_alike_keep_their_distance() -> None:
    heights = plot._apart([0.1, 0.96, 0.97, 0.98], 0.1)
    assert heights == pytest.approx([0.1, 0.8, 0.9, 1.0])


def test_a_figure_without_data_is_told_and_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "runs", document("a", status="failed"), done=False)
    figures = tmp_path / "figures"
    assert report([tmp_path / "runs"], tmp_path / "page.html", figures) == tmp_path / "page.html"
    assert (tmp_path / "page.html").exists()
    told = capsys.readouterr().err.splitlines()
    names = ["evaluations-1.svg", "losses-1.svg", "throughput-1.svg", "staleness-1.svg"]
    assert told == [f"hpcasync: not written: {figures / name}: no data in digits, 4 ranks, slow 3:4" for name in names]
    assert list(figures.iterdir()) == []


def test_figures_are_files_that_stand_alone(tmp_path: Path) -> None:
    write(tmp_path / "runs", document("a"))
    write(tmp_path / "runs", document("b", "downpour"))
    report([tmp_path / "runs"], tmp_path / "page.html", tmp_path / "figures")
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert files == ["evaluations-1.svg", "losses-1.svg", "staleness-1.svg", "throughput-1.svg"]
    for name in files:
        root = ElementTree.parse(tmp_path / "figures" / name).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert "prefers-color-scheme: dark" in (root[0].text or "")
