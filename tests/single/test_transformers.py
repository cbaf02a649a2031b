"""The model `huggingface`: what it opens, how it fits the data, and what it computes."""

from __future__ import annotations

import copy
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hvd_train.comm.engines.single import SingleCommunicator
from hvd_train.compute.calling import caller
from hvd_train.compute.parallel.stages import layers
from hvd_train.config import plugins
from hvd_train.config.lora_section import LoraSection
from hvd_train.data.spec import DataSpec
from hvd_train.errors import UserError
from hvd_train.saved.model import load_model
from hvd_train.saved.run import find_run
from hvd_train.training import checkpoint
from tests.bodies import parallelism, training
from tests.bodies.trained import train
from tests.bodies.transformers import BERT, CLASSES, GPT2, LENGTH, LLAMA, SIZES, VOCABULARY, classifier, decoder
from tests.engines import threads

transformers = pytest.importorskip("transformers")

TEXTS = DataSpec((LENGTH,), CLASSES, "classification", vocabularies={"input_ids": VOCABULARY})
LANGUAGE = DataSpec((LENGTH,), VOCABULARY, "language")
BATCH = {
    "input_ids": torch.arange(2 * LENGTH).reshape(2, LENGTH) % VOCABULARY,
    "attention_mask": torch.tensor([[1] * LENGTH, [1] * 3 + [0] * (LENGTH - 3)], dtype=torch.bool),
}


def make(spec: DataSpec = TEXTS, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"task": "sequence-classification", **options}
    return plugins.create("hvd_train.models.zoo", "huggingface", spec, **options).eval()


def refusal(spec: DataSpec = TEXTS, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        make(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(folder: Path, kind: str = "BertModel", **changed: Any) -> str:
    """Save a small model of the library with random weights, and return its folder."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(**{**BERT, "vocab_size": VOCABULARY, **changed})
    getattr(transformers, kind)(config).save_pretrained(folder)
    return str(folder)


class TestOpening:
    def test_names_and_weights_are_those_of_the_library(self, tmp_path: Path) -> None:
        model = make(pretrained=saved(tmp_path / "bert"))
        theirs = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "bert", num_labels=CLASSES)
        assert list(model.state_dict()) == list(theirs.state_dict())
        for name, value in theirs.bert.state_dict().items():
            assert torch.equal(model.state_dict()[f"bert.{name}"], value)
        assert model.state_dict()["classifier.weight"].shape[0] == CLASSES

    def test_a_head_of_other_classes_is_replaced(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "five", "BertForSequenceClassification", num_labels=5)
        assert make(pretrained=path)(**BATCH)["logits"].shape == (2, CLASSES)

    def test_random_weights_follow_from_the_seed(self) -> None:
        one, two = make(config=BERT), make(config=BERT)
        assert all(torch.equal(x, y) for x, y in zip(one.parameters(), two.parameters(), strict=True))

    def test_pickled_weights_are_read_only_if_asked_for(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "bert")
        assert refusal(pretrained=path, pickled=True) == (
            f"model.pickled: no pytorch_model.bin in '{path}'; leave pickled out"
        )
        model = transformers.BertModel.from_pretrained(path)
        (tmp_path / "bert" / "model.safetensors").unlink()
        assert "expected model.safetensors" in refusal(pretrained=path)
        torch.save(model.state_dict(), tmp_path / "bert" / "pytorch_model.bin")
        assert "it has pickled weights, which can execute code" in refusal(pretrained=path)
        read = make(pretrained=path, pickled=True)
        assert torch.equal(read.bert.pooler.dense.weight, model.pooler.dense.weight)

    def test_a_name_without_a_network_is_refused_at_once(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        def unreachable(*arguments: Any) -> None:
            raise OSError

        monkeypatch.setattr(socket, "create_connection", unreachable)
        monkeypatch.setattr("hvd_train.data.hub.getproxies", dict)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bert-tiny2").mkdir()
        message = refusal(pretrained="bert-tiny")
        assert message.startswith(
            "model.pretrained: no folder 'bert-tiny'; did you mean 'bert-tiny2'?, and https://huggingface.co cannot"
        )
        assert "hf download bert-tiny --local-dir FOLDER" in message
        assert refusal(pretrained="./bert-tiny") == (
            "model.pretrained: no folder './bert-tiny'; did you mean 'bert-tiny2'?"
        )

    def test_folders_of_other_models_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert "no config.json in" in refusal(pretrained=str(tmp_path / "empty"))
        path = Path(saved(tmp_path / "bert"))
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "intermediate_size": 24}))
        assert "has another shape in" in refusal(pretrained=str(path))
        (path / "config.json").write_text(json.dumps({**config, "model_type": "distilbert"}))
        assert "expected the weights of a distilbert" in refusal(pretrained=str(path))
        own = {**config, "model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}
        (path / "config.json").write_text(json.dumps(own))
        (path / "mine.py").write_text("raise SystemExit('executed')")
        assert refusal(pretrained=str(path)).startswith(f"model.pretrained: '{path}' cannot be read:")
        (path / "config.json").write_text("{")
        assert refusal(pretrained=str(path)).startswith(f"model.pretrained: '{path}' cannot be read:")

    def test_wrong_options(self) -> None:
        assert refusal() == refusal(pretrained="x", config=BERT) == "model: give 'pretrained' or 'config', one of them"
        assert "no 'brt' in transformers" in refusal(config={**BERT, "model_type": "brt"})
        assert refusal(config={**BERT, "model_type": "brt"}).endswith("did you mean 'bert'?")
        assert "no option 'hiden_size' of a bert; did you mean 'hidden_size'?" in refusal(
            config={**BERT, "hiden_size": 8}
        )
        assert "model.config: " in refusal(config={**BERT, "hidden_size": "wide"})
        assert "transformers cannot make this bert" in refusal(config={**BERT, "hidden_size": 18})
        assert refusal(config={"hidden_size": 8}) == "model.config.model_type: is missing, such as bert"


class TestData:
    def test_tokens_beyond_the_embedding_are_refused(self, tmp_path: Path) -> None:
        path = saved(tmp_path / "bert", vocab_size=VOCABULARY - 1)
        assert refusal(pretrained=path).startswith(
            f"model: the embedding has {VOCABULARY - 1} tokens, and the tokenizer of the data has {VOCABULARY}"
        )

    @pytest.mark.parametrize(("kind", "places"), [("bert", LENGTH), ("roberta", LENGTH - 2)])
    def test_texts_longer_than_the_positions_are_refused(self, kind: str, places: int) -> None:
        config = {**BERT, "model_type": kind}
        make(DataSpec((places,), CLASSES, "classification", vocabularies={"input_ids": VOCABULARY}), config=config)
        longer = DataSpec((places + 1,), CLASSES, "classification", vocabularies={"input_ids": VOCABULARY})
        assert refusal(longer, config=config).endswith(f"set data.length to at most {places}")

    def test_tasks_refuse_other_data_and_models(self) -> None:
        assert "no model of type 'bert' for 'speech-ctc'" in refusal(task="speech-ctc", config=BERT)
        assert "'causal-lm' takes tokens" in refusal(task="causal-lm", config=GPT2)
        images = DataSpec((3, 8), CLASSES, "classification")
        assert "takes images (channels, height, width)" in refusal(
            images, task="image-classification", config={**SIZES, "model_type": "vit"}
        )
        stereo = DataSpec((2, 400), CLASSES, "classification")
        assert "sounds of one channel" in refusal(stereo, task="audio-classification", config=SPEECH)


VIT = {**SIZES, "model_type": "vit", "patch_size": 4}
SPEECH = {
    **SIZES,
    "model_type": "wav2vec2",
    "conv_dim": [8, 8],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
}
T5 = {"model_type": "t5", "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 12, "d_kv": 8}


class TestOutputs:
    def test_classifiers_take_what_forward_takes(self) -> None:
        model = make(config=BERT)
        expected = model.inner(**BATCH)["logits"].detach()
        assert torch.equal(caller(model)({**BATCH, "length": torch.ones(2)})["logits"], expected)
        mean = model(**BATCH, labels=torch.tensor([0, 2]))["loss"].item()
        assert mean == pytest.approx(float(F.cross_entropy(expected, torch.tensor([0, 2]))))
        assert make(task="token-classification", config=BERT)(**BATCH)["logits"].shape == (2, LENGTH, CLASSES)

    def test_numbers(self) -> None:
        spec = DataSpec((LENGTH,), 1, "regression", vocabularies={"input_ids": VOCABULARY})
        with torch.no_grad():
            found = make(spec, config=BERT)(**BATCH, labels=torch.ones(2, 1))
        assert found["loss"].item() == pytest.approx(float((found["logits"] - 1).square().mean()))

    def test_targets_of_a_source_of_tokens_are_shifted_already(self) -> None:
        model, tokens = make(LANGUAGE, task="causal-lm", config=GPT2), BATCH["input_ids"]
        found = caller(model)([tokens[:, :-1], tokens[:, 1:]])
        expected = F.cross_entropy(found["logits"].flatten(0, 1), tokens[:, 1:].flatten())
        assert torch.equal(found["loss"], expected)
        assert torch.allclose(model(input_ids=tokens, labels=tokens)["loss"], expected, rtol=1e-6)

    def test_images_size_the_model(self) -> None:
        spec = DataSpec((1, 8, 12), CLASSES, "classification")
        model = make(spec, task="image-classification", config=VIT)
        assert model(torch.rand(2, 1, 8, 12))["logits"].shape == (2, CLASSES)

    def test_sounds(self) -> None:
        waves, mask = torch.randn(2, 1, 400), torch.ones(2, 400, dtype=torch.bool)
        mask[1, 200:] = False
        spec = DataSpec((1, 400), CLASSES, "classification")
        model = make(spec, task="audio-classification", config=SPEECH)
        found = caller(model)((waves, mask))["logits"]
        alone = caller(model)((waves[1:, :, :200], mask[1:, :200]))["logits"]
        assert torch.allclose(found[1:], alone, atol=1e-5), "padding changes nothing"
        speech = caller(make(spec, task="speech-ctc", config=SPEECH))((waves, mask))
        assert speech["input_lengths"].tolist() == [39, 19]
        assert torch.allclose(speech["logits"].exp().sum(-1), torch.ones(2, 39))

    def test_sequences_to_sequences(self) -> None:
        spec = DataSpec((LENGTH,), VOCABULARY, "other", vocabularies={"input_ids": VOCABULARY})
        model = make(spec, task="seq2seq", config=T5)
        given = {**BATCH, "decoder_input_ids": BATCH["input_ids"][:, :5]}
        assert model(**given)["logits"].shape == (2, 5, VOCABULARY)

    def test_gradient_checkpointing_changes_no_gradient(self) -> None:
        def gradients(**options: Any) -> list[Tensor]:
            model = make(config=BERT, **options).train()
            model(**BATCH)["logits"].square().sum().backward()
            return [p.grad for p in model.parameters() if p.grad is not None]

        plain, again = gradients(), gradients(gradient_checkpointing=True)
        assert all(torch.equal(x, y) for x, y in zip(plain, again, strict=True))

    def test_a_copy_has_parameters_of_its_own(self) -> None:
        model = make(config=BERT)
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.classifier.bias += 1
        assert torch.allclose(other(**BATCH)["logits"], model(**BATCH)["logits"] + 1)


class TestLora:
    def test_updates_and_the_head_are_trained(self) -> None:
        pytest.importorskip("peft")
        model = make(config=BERT, lora=LoraSection(rank=2))
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert {name for name in trained if ".lora_" not in name} == {"classifier.weight", "classifier.bias"}
        assert len(trained) == 2 + 2 * 2 * 2
        assert torch.equal(model(**BATCH)["logits"], make(config=BERT)(**BATCH)["logits"]), "an update begins with zero"

    def test_targets_that_fit_nothing_are_refused(self) -> None:
        pytest.importorskip("peft")
        assert refusal(config=BERT, lora=LoraSection(targets=["querry"])).startswith("model.lora.targets: ")


class TestDivided:
    @pytest.mark.parametrize("config", [{**LLAMA, "model_type": kind} for kind in ("mistral", "qwen2", "qwen3")])
    def test_layers_compute_what_the_model_computes(self, config: dict[str, Any]) -> None:
        extra = {"sliding_window": None} if config["model_type"] == "mistral" else {}
        model = make(LANGUAGE, task="causal-lm", config={**config, **extra})
        first, *others = layers(model)
        flow = caller(first.run)(BATCH)
        for layer in others:
            flow = layer.run(flow)
        assert torch.equal(flow["logits"], model(**BATCH)["logits"])

    @pytest.mark.parametrize("model", ["bert", "gpt2", "llama"])
    def test_stages_and_shares_equal_one_process(self, model: str) -> None:
        for p, t in ((2, 1), (1, 2)):
            case = (model, "adamw", p, t, "1f1b", 2)
            threads.run(2, lambda comm, case=case: parallelism.equals_one_process(comm, [case]))
        case = (model, "clipped", 2, 2, "gpipe", 2)
        threads.run(4, lambda comm: parallelism.equals_one_process(comm, [case]))

    def test_a_whole_model_reads_the_checkpoint_of_stages(self, tmp_path: Path) -> None:
        def saving(comm: Any) -> None:
            config = training.configuration(
                **decoder(GPT2), parallel={"pipeline": 2}, train={"steps": 2, "epochs": None}
            )
            job = training.trainer(comm, config, checkpoints=tmp_path / "checkpoints")
            job.run()

        threads.run(2, saving)
        config = training.configuration(**decoder(GPT2), train={"steps": 4, "epochs": None})
        job = training.trainer(SingleCommunicator(), config)
        job.restore(checkpoint.load(tmp_path, SingleCommunicator(), print))
        weights = job.model.state_dict()
        assert torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"])

    def test_unknown_layers_are_refused(self) -> None:
        def refused(comm: Any) -> list[str]:
            found = []
            for options in ({"pipeline": 2}, {"tensor": 2}):
                config = {**SIZES, "model_type": "electra", "embedding_size": 16}
                job = training.configuration(**classifier(config=config), parallel=options)
                with pytest.raises(UserError) as caught:
                    training.trainer(comm, job)
                found.append(str(caught.value))
            return found

        for pipeline, tensor in threads.run(2, refused):
            assert "the model is a ElectraForSequenceClassification" in pipeline
            assert "a ElectraForSequenceClassification, has no" in tensor


def test_two_ranks_equal_one_with_masks_of_unequal_length() -> None:
    """Masked texts have unequal numbers of targets, also in the micro-batches of a step."""
    masked = {
        **classifier(task="masked-lm"),
        "train": {"accumulate": 2, "epochs": 1},
    }
    masked["data"] = {**masked["data"], "transforms": [{"name": "mask_tokens", "mask": 1, "probability": 0.4}]}

    def trained(comm: Any, batch: int) -> dict[str, Tensor]:
        job = training.trainer(
            comm, training.configuration(**{**masked, "data": {**masked["data"], "batch_size": batch}})
        )
        job.run()
        return training.parameters(job)

    expected = trained(SingleCommunicator(), 12)
    for found in threads.run(2, lambda comm: trained(comm, 6)):
        training.assert_close(found, expected)


def test_a_saved_run_is_read_from_another_folder_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run has a relative path to its pretrained folder, low-rank updates, and frozen weights below them."""
    pytest.importorskip("peft")
    saved(tmp_path / "bert")
    sections = classifier(pretrained="bert", config=None, lora={"rank": 2})
    values = {
        "model": {key: value for key, value in sections["model"].items() if value is not None},
        "data": {**sections["data"], "batch_size": 32},
        "optimizer": {"name": "AdamW", "lr": 0.01},
        "train": {"steps": 4},
        "checkpoint": {"every": 2},
    }
    monkeypatch.chdir(tmp_path)
    run = train(tmp_path, values)
    first = run / "checkpoints" / "step-00000002"
    monkeypatch.chdir(tmp_path.parent)
    loaded = load_model(find_run(run)).module
    weights = checkpoint.weights(run / "checkpoints" / "step-00000004")
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    monkeypatch.chdir(tmp_path)
    again = training.trainer(SingleCommunicator(), find_run(run).config)
    again.restore(checkpoint.load(first, SingleCommunicator(), print))
    again.run()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
