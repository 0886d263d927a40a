"""Eq. 1 as the trainer computes it, what prompts say to it, and which weights learn at which rate: against direct computation."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from kbdm_core.adapter import SECTIONS, fresh_adapter, sd15_sizes
from kbdm_core.adapter_file import save_adapter
from kbdm_core.guidance import adapter_guidance
from kbdm_core.knowledge_base import load_knowledge_base
from kbdm_core.phrases import decompose
from testbed.random_weights import randomise
from testbed.sample_data import write_folder
from testbed.tiny_base import WIDTHS, tiny_models, write_tiny_base, write_tiny_knowledge_base
from testbed.training import small_run
from train.adapter.commands import encoder
from train.adapter.conditions import KBAnswers
from train.adapter.objective import AdapterObjective, Inputs
from train.adapter.sampling import noise_of, scheduler
from train.adapter.table import AdapterTable
from train.adapter.training import AdapterTraining, make_optimiser, project_blend
from train.base.checkpoint import autoencoder_of, read_base, unet_of
from train.base.diffusion import NOISE, SNRWeight
from train.base.text import text_encoder
from train.data.records import DataTable
from train.data.sources import open_dataset
from train.examples.encoding import ExamplesTable
from train.examples.examples import open_examples
from train.examples.sources import DatasetSource
from train.examples.variants import AugmentTable

SIZES = sd15_sizes(WIDTHS, SECTIONS, 16, 24, pose_width=32, pose_stem=(8, 8, 8, 8))


def moved_adapter():
    adapter = fresh_adapter(SIZES)
    randomise(adapter, 3)
    return adapter


def some_inputs(batch: int = 3) -> Inputs:
    random = torch.Generator().manual_seed(0)
    masks = (torch.rand(batch, 2, 8, 8, generator=random) > 0.6).float()
    return Inputs(
        torch.randn(batch, 4, 8, 8, generator=random),
        torch.randn(batch, 4, 8, 8, generator=random),
        torch.tensor([10, 500, 990])[:batch],
        torch.randn(batch, 77, 64, generator=random),
        torch.randn(batch, 16, 24, generator=random),
        torch.rand(batch, 64, 64, 3, generator=random),
        masks,
    )


@pytest.fixture(scope="module")
def unet():
    return tiny_models()[0]


@pytest.mark.parametrize(("alpha", "snr", "plus"), [(1.0, 0.0, 0.0), (5.0, 0.0, 0.0), (1.0, 5.0, 0.0), (5.0, 2.0, 0.0), (1.0, 5.0, 1.0)])
def test_the_error_is_eq_1_weighted_in_the_pose_and_by_the_snr(unet, alpha, snr, plus):
    inputs, adapter = some_inputs(), moved_adapter()
    objective = AdapterObjective(adapter, unet, alpha, SNRWeight(snr, plus))
    with torch.no_grad():
        found = objective(inputs)
        bar = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().neg().add(1).cumprod(0)
        for one in range(3):
            a = float(bar[inputs.timesteps[one]])
            part = inputs.part(slice(one, one + 1))
            noisy = a**0.5 * part.latents + (1 - a) ** 0.5 * part.noise
            guidance = adapter_guidance(adapter, (part.kb_tokens, part.kb_tokens), part.pose_pictures, pose_masks=tuple(part.masks.unbind(1)))
            square = (objective.guided(noisy, part.timesteps, part.states, guidance) - part.noise) ** 2
            square = torch.where(part.masks[:, :1].bool(), alpha * square, square)
            weight = min(a / (1 - a) + plus, snr) / (a / (1 - a)) if snr else 1.0
            assert found[one].item() == pytest.approx(weight * square.mean().item(), rel=1e-3)


def test_a_fresh_adapter_leaves_the_bases_own_error(unet):
    inputs = some_inputs()
    with torch.no_grad():
        steered = AdapterObjective(fresh_adapter(SIZES), unet)(inputs)
        noisy = DDPMScheduler(**NOISE).add_noise(inputs.latents, inputs.noise, inputs.timesteps)
        plain = (tiny_models()[0](noisy, inputs.timesteps, inputs.states).sample - inputs.noise).square().mean((1, 2, 3))
    assert torch.allclose(steered, plain, rtol=1e-5)


def gradients(objective: AdapterObjective, inputs: Inputs) -> dict[str, torch.Tensor]:
    objective.zero_grad()
    objective(inputs).mean().backward()
    return {name: value.grad.clone() for name, value in objective.adapter.named_parameters()}


def test_gradient_checkpointing_changes_no_gradient_and_the_base_gets_none(unet):
    inputs, adapter = some_inputs(), moved_adapter()
    objective = AdapterObjective(adapter, unet)
    plain = gradients(objective, inputs)
    unet.enable_gradient_checkpointing()
    unet.train()
    try:
        twice = gradients(objective, inputs)
    finally:
        unet.disable_gradient_checkpointing()
        unet.eval()
    assert all(torch.allclose(plain[name], twice[name], rtol=1e-4, atol=1e-7) for name in plain)
    assert all(value.grad is None for value in unet.parameters())


def test_bf16_autocast_keeps_float32_gradients_near_those_of_float32(unet):
    inputs, objective = some_inputs(), AdapterObjective(moved_adapter(), unet)
    exact = gradients(objective, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = gradients(objective, inputs)
    assert all(value.dtype == torch.float32 for value in rounded.values())
    dot = sum((exact[name] * rounded[name]).sum() for name in exact)
    lengths = [sum(value.square().sum() for value in each.values()) ** 0.5 for each in (exact, rounded)]
    assert dot / (lengths[0] * lengths[1]) > 0.98


def test_every_section_has_its_rate_and_the_scalars_theirs():
    adapter = fresh_adapter(SIZES)
    table = AdapterTable(learning_rate=1e-5, pose_rate=3e-4, optimiser="adamw", weight_decay=0.1)
    rates = {id(value): (group["lr"], group["weight_decay"]) for group in make_optimiser(adapter, table).param_groups for value in group["params"]}
    assert len(rates) == len(list(adapter.parameters()))
    assert rates[id(adapter.dm.blend)] == rates[id(adapter.kb.input_blocks["1"].scale)] == (1e-3, 0.0)
    assert rates[id(adapter.kb.input_blocks["1"].to_k.weight)] == (1e-5, 0.1)
    assert rates[id(adapter.pose.stem.conv.weight)] == (3e-4, 0.1) and rates[id(adapter.pose.stem.conv.bias)] == (3e-4, 0.0)


def test_blends_are_projected_into_their_range():
    adapter = fresh_adapter(SIZES)
    adapter.dm.blend.data.copy_(torch.linspace(-1, 2, 16))
    project_blend(adapter)
    assert adapter.dm.blend.min() == 0 and adapter.dm.blend.max() == 1 and adapter.dm.blend.requires_grad


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_folder(folder / "pictures", 6)
    return write_tiny_base(folder / "base.safetensors"), write_tiny_knowledge_base(folder / "kb.safetensors"), folder


def test_captions_ask_the_knowledge_base_as_the_node_does(files, tmp_path):
    base, path, _ = files
    text, knowledge_base = text_encoder(read_base(base), ""), load_knowledge_base(path)
    captions = ["oil painting, a woman in a red shirt waving, in a park", "a man"]
    answers = KBAnswers(knowledge_base, text, captions, "phrases", tmp_path, quiet=True)
    found = answers.tokens([0, 1, 0], [False, False, True])
    for tokens, prompt in zip(found, (*captions, "")):
        expected = knowledge_base.query(knowledge_base.project(text.pooled(decompose(prompt)))).fused[0]
        assert torch.allclose(tokens, expected, atol=1e-6)
    again = KBAnswers(knowledge_base, text, captions, "phrases", tmp_path, quiet=True)
    assert torch.equal(again.tokens([1], [False]), found[1:2])


def test_prompts_are_dropped_together_with_their_tokens_at_step_time(files, tmp_path):
    base, path, folder = files
    file = read_base(base)
    text, knowledge_base = text_encoder(file, ""), load_knowledge_base(path)
    with small_run(tmp_path / "run") as run:
        source = DatasetSource(open_dataset(DataTable(root=folder / "pictures")))
        examples = open_examples(
            run, source, ExamplesTable(resolution=64, cache=tmp_path / "latents"), AugmentTable(), encoder(autoencoder_of(file), run.device), "x"
        )
        answers = KBAnswers(knowledge_base, text, examples.captions, "phrases", tmp_path / "kb", quiet=True)
        empty_states = text.states(text.tokens([""]))[0]
        shares = []
        for drop in (0.0, 0.5, 1.0):
            objective = AdapterObjective(fresh_adapter(SIZES), unet_of(file))
            table = AdapterTable(steps=40, batch=6, prompt_drop=drop)
            stage = AdapterTraining(run, table, objective, text, examples, torch.arange(len(examples)), answers)
            dropped = 0
            for index in range(20):
                found = stage._inputs(index)
                gone = (found.states == empty_states).flatten(1).all(1)
                assert torch.equal(gone, (found.kb_tokens == answers.tokens([0], [True])).flatten(1).all(1))
                dropped += int(gone.sum())
            shares.append(dropped / 120)
        assert shares[0] == 0 and shares[2] == 1 and 0.3 < shares[1] < 0.7


def test_the_schedule_is_ddim_with_leading_spacing_offset_1_and_a_clean_end():
    plan = scheduler(50)
    assert plan.timesteps.tolist() == list(range(981, 0, -20)) and float(plan.final_alpha_cumprod) == 1.0


def test_noise_is_that_of_the_hosts_generator():
    torch.manual_seed(7)
    expected = torch.randn([1, 4, 5, 6])
    assert torch.equal(noise_of([3, 7], (5, 6))[1:], expected)


def test_an_adapter_of_another_knowledge_base_is_no_start(files, tmp_path, capsys):
    from kbdm_core.adapter_file import AdapterInfo
    from train.__main__ import main

    base, path, folder = files
    save_adapter(tmp_path / "old.safetensors", fresh_adapter(SIZES), AdapterInfo("old", "sd15", codebook_sha256="0" * 64))
    arguments = ["adapter", f"--base.checkpoint={base}", f"--knowledge-base={path}", f"--data.root={folder / 'pictures'}"]
    assert main([*arguments, f"--init={tmp_path / 'old.safetensors'}", f"--output={tmp_path / 'new.safetensors'}"]) == 2
    assert "its own codebook" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["old.safetensors"]
