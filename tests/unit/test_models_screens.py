"""What ``symposia models show`` prints of precisions and facts."""

from __future__ import annotations

from symposia_worker.commands.models import _form_lines, _shown_fact
from symposia_worker.families.forms import FormReport
from symposia_worker.models.forms import Forms

EXACT = FormReport(mode="exact", bytes=538_060_123, perplexity=9.9717, perplexity_float32=9.9716, tokens_per_s=331.2, rows=8, threads=2,
                   processor="some CPU", activations="f32", cache="f32")
FAST = EXACT.model_copy(update={"mode": "fast", "bytes": 136_000_000, "perplexity": 9.999, "cache": "u8", "tokens_per_s": None})


def test_each_precision_is_a_row_of_bytes_loss_and_rate_beside_torchs() -> None:
    head, torch, exact, fast, measured = _form_lines(Forms(revision="a" * 64, reports=(EXACT, FAST)))
    assert head.split() == ["precision", "bytes", "perplexity", "loss", "tokens/s", "computes", "in", "cache"]
    assert torch.split() == ["torch", "float32", "9.972"]
    assert exact.split() == ["openvino", "exact", "538,060,123", "9.972", "+0.00%", "331.2", "f32", "f32"]
    assert fast.split() == ["openvino", "fast", "136,000,000", "9.999", "+0.27%", "-", "f32", "u8"]
    assert measured == "tokens/s: 8 at once, 2 cores, some CPU"
    assert len({line.index(" f32") for line in (exact, fast)}) == 1


def test_a_refused_form_says_why_below_the_others() -> None:
    lines = _form_lines(Forms(revision="a" * 64, reports=(EXACT, FAST.model_copy(update={"refused": "its perplexity is 12."}))))
    assert [line.split()[:2] for line in lines[2:4]] == [["openvino", "exact"], ["openvino", "fast"]]
    assert lines[3].endswith(" refused: its perplexity is 12.")


def test_a_fact_is_written_for_people() -> None:
    assert [_shown_fact(v) for v in (None, [], ["a", "b"], {"id": "lab/x", "mode": "fast"}, 3000, 0.5, True)] == [
        "-", "-", "a b", "id lab/x, mode fast", "3,000", "0.5", "yes"]
