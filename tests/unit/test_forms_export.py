from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("openvino_genai")
pytest.importorskip("optimum.intel")

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from forms import exported
from symposia_worker.engines.paged import Paged
from symposia_worker.families.export import Tested, export, greedy, prompts_of, windows
from symposia_worker.families.export_pair import TestedPair
from symposia_worker.families.probe import Refused
from symposia_worker.models.exporting import run_measure
from tiny import tiny_checkpoint


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "llama")


@pytest.fixture
def forms(llama: Path, tmp_path: Path) -> Path:
    """The forms, to be spoiled."""
    return Path(shutil.copytree(llama, tmp_path / "forms"))


def prepared(forms: Path, *, reference: float) -> Tested:
    tokenizer = AutoTokenizer.from_pretrained(forms / "torch")
    passage = tokenizer("The captain wrote down what he had seen, and nobody read it. " * 12)["input_ids"]
    return Tested(forms, passage=passage, prompts=[passage[:5], passage[3:90]], context=256, vocabulary=320, reference=reference, threads=1)


def perplexity(forms: Path) -> float:
    report = prepared(forms, reference=1.0)._measured("fast")
    assert report.perplexity is not None
    return report.perplexity


def test_a_form_that_loses_more_than_a_hundredth_of_perplexity_is_refused_and_not_kept(forms: Path) -> None:
    refused = prepared(forms, reference=perplexity(forms) / 1.02).fast()
    assert refused.refused is not None
    assert "+2.00%" in refused.refused
    assert not (forms / "fast").exists()


def test_a_form_that_loses_less_is_kept_with_what_was_measured(forms: Path) -> None:
    report = prepared(forms, reference=perplexity(forms) / 1.005).fast()
    assert report.refused is None
    assert report.loss == pytest.approx(0.005, abs=1e-4)
    assert report.bytes == sum((forms / "fast" / name).stat().st_size for name in ("openvino_model.xml", "openvino_model.bin"))
    assert report.tokens_per_s is not None
    assert report.tokens_per_s > 0
    assert (report.activations in ("f32", "bf16"), report.cache) == (True, "u8")
    assert (forms / "fast" / "openvino_model.bin").exists()


def test_an_exact_form_of_other_weights_is_refused(forms: Path, tmp_path: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(tiny_checkpoint(tmp_path / "other", "llama", seed=1)).eval()
    refused = prepared(forms, reference=1.0).exact(network)
    assert refused.refused is not None
    assert "below torch's best logit" in refused.refused
    assert not (forms / "exact").exists()


def test_an_architecture_that_genai_serves_wrongly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="mpt is not among"):
        export(tiny_checkpoint(tmp_path / "mpt", "mpt"), tmp_path / "out", threads=1)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory, "t5")


def prepared_pair(forms: Path, *, reference: float) -> TestedPair:
    tokenizer = AutoTokenizer.from_pretrained(forms / "torch")
    passage = tokenizer("The captain wrote down what he had seen, and nobody read it. " * 12)["input_ids"]
    return TestedPair(forms, passage=passage, prompts=[passage[:5], passage[3:90]], context=128, vocabulary=420, reference=reference, threads=1)


def test_a_t5s_forms_are_tested_with_rows_that_leave_and_measured_by_a_target_given_its_source(t5: Path, tmp_path: Path) -> None:
    import torch

    forms = Path(shutil.copytree(t5, tmp_path / "forms"))
    network = AutoModelForSeq2SeqLM.from_pretrained(forms / "torch").eval()
    tested = prepared_pair(forms, reference=1.0)
    source, target = windows(tested.passage, 127)[:2]
    with torch.inference_mode():
        loss = network(input_ids=torch.tensor([source]), labels=torch.tensor([target])).loss  # transformers' own shift to the right
    tested.passage = [*source, *target]
    report = tested.exact(network)
    assert report.refused is None
    assert report.perplexity == pytest.approx(math.exp(loss), rel=1e-4)
    assert (report.activations, report.cache) == ("f32", "f32")
    assert report.bytes == sum(path.stat().st_size for path in (forms / "exact").glob("openvino_*"))
    assert report.tokens_per_s is not None
    assert report.tokens_per_s > 0

    perplexity = tested._measured("fast").perplexity
    assert perplexity is not None
    tested.reference = perplexity / 1.005
    assert tested.fast().refused is None
    tested.reference = perplexity / 1.02
    refused = tested.fast().refused
    assert refused is not None
    assert "+2.00%" in refused
    assert not (forms / "fast").exists()


def test_an_exact_form_of_another_t5s_weights_is_refused(t5: Path, tmp_path: Path) -> None:
    import torch

    forms = Path(shutil.copytree(t5, tmp_path / "forms"))
    network = AutoModelForSeq2SeqLM.from_pretrained(forms / "torch").eval()
    with torch.no_grad():
        network.decoder.block[1].layer[1].EncDecAttention.v.weight.mul_(1.5)
    refused = prepared_pair(forms, reference=1.0).exact(network)
    assert refused.refused is not None
    assert "below torch's best logit" in refused.refused
    assert not (forms / "exact").exists()


def test_the_rate_of_a_t5s_form_is_measured_again_by_a_process_of_its_own(t5: Path) -> None:
    rate = run_measure(t5 / "fast", "fast", name="tiny", threads=1)
    assert (rate.rows, rate.threads) == (8, 1)
    assert rate.tokens_per_s > 0


def test_the_self_test_reads_beyond_any_local_window() -> None:
    class Config:
        sliding_window = 700

    longest = max(prompts_of(list(range(1000)), Config(), 4096), key=len)
    assert len(longest) > 700
    assert max(map(len, prompts_of(list(range(1000)), Config(), 256))) < 256


def test_ids_beyond_the_tokenizers_are_never_chosen(tmp_path: Path) -> None:
    """GenAI chooses among all rows of the output; those that no tokenizer knows are masked when it is exported."""
    folder = tiny_checkpoint(tmp_path / "torch", "llama", padding=2000)
    reports = export(folder, tmp_path, threads=1)
    assert [r.refused for r in reports] == [None, None]
    paged = Paged(tmp_path / "exact", "exact", blocks=64, rows=8, chunk_tokens=64, threads=1)
    chosen = greedy(paged, [[n, n + 1, n + 2] for n in range(5, 60, 7)], 30)
    assert max(map(max, chosen)) < 320


def test_windows_cover_a_text_and_have_something_to_predict() -> None:
    assert windows(list(range(7)), 3) == [[0, 1, 2], [3, 4, 5]]
    assert windows(list(range(8)), 3) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_openvinos_telemetry_is_never_imported_and_leaves_no_trace(tmp_path: Path) -> None:
    code = ("import sys; from symposia_worker.engines.runtime import genai; genai(); import nncf, openvino.tools.ovc\n"
            "assert sys.modules['openvino_telemetry'] is None\n"
            "assert not [m for m in sys.modules if m.startswith('openvino_telemetry.')]\n"
            "assert type(nncf.telemetry.telemetry).__name__ != 'NNCFTelemetry', nncf.telemetry.telemetry\n")
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "HOME": str(tmp_path)}, capture_output=True, text=True,
                          timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "intel").exists()
