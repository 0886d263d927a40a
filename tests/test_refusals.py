"""Rows 8 and 10 of the robustness cases, bar A8: every refusal says what was given and what is needed. Files: test_adapter_files.py."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch

from testbed.host import import_host
from testbed.host_model import host_model, sample
from testbed.pack import PACKAGE, load_node_module
from testbed.small_adapter import CODEBOOK, TOKEN_WIDTH, TOKENS, kb_tokens, random_adapter, steer

comfy = import_host()
errors = importlib.import_module(f"{PACKAGE}.kbdm_core.errors")
mask_node = load_node_module("dynamic_mask").KBDMDynamicMaskAttention()
CPU = torch.device("cpu")
MASK = torch.zeros(1, 128, 128)
MASK[:, 20:90, 30:60] = 1
SD2 = {"use_linear_in_transformer": True, "model_channels": 64}
SDXL = {
    "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "transformer_depth": [0, 0, 1, 1, 2, 2], "transformer_depth_middle": 2,
    "transformer_depth_output": [0, 0, 0, 1, 1, 1, 2, 2, 2], "use_linear_in_transformer": True, "num_classes": "sequential",
    "adm_in_channels": 16, "num_heads": -1, "num_head_channels": 16,
}  # fmt: skip
SD3 = {"in_channels": 16, "pos_embed_scaling_factor": None, "depth": 1, "input_size": None, "pos_embed_max_size": 8,
       "num_patches": 64, "adm_in_channels": 16, "context_size": 64, "dtype": torch.float32}  # fmt: skip
FLUX = {
    "image_model": "flux", "in_channels": 16, "out_channels": 16, "vec_in_dim": 16, "context_in_dim": 64, "hidden_size": 64, "mlp_ratio": 2.0,
    "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": [8, 12, 12], "theta": 10000, "patch_size": 2, "qkv_bias": True,
    "guidance_embed": True, "txt_ids_dims": [], "dtype": torch.float32,
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter():
    return random_adapter()


def masked(model):
    return mask_node.patch(model, MASK, "linear", 1.0, 0.5, 1.0, "neutral", "key", "all", 0.0, 1.0)[0]


def transformer_model(family: str):
    """A small model of the host's own class for a family without a UNet."""
    changes = {"SD3": SD3, "Flux": FLUX}[family]
    base = getattr(comfy.supported_models, family)(changes).get_model({}, "", device=CPU)
    return comfy.model_patcher.ModelPatcher(base, CPU, CPU)


# Row 8: models that the adapter was not made for

OTHER_FAMILIES = {"SDXL": lambda: host_model("SDXL", **SDXL), "SD3": lambda: transformer_model("SD3")}
if hasattr(comfy.supported_models, "Flux"):  # the host of June 2024 is older than Flux; SD3 is of its kind
    OTHER_FAMILIES["Flux"] = lambda: transformer_model("Flux")


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_another_family_is_named_with_what_is_needed(adapter, family):
    with pytest.raises(errors.MismatchError, match=rf"small\.safetensors.*made for sd15-mini.*16 transformer blocks.*is {family} \(.*Load an SD1\.5"):
        steer(OTHER_FAMILIES[family](), adapter)


def test_sd2_is_told_from_sd15_of_the_same_widths():
    """SD2's UNet has the same 16 blocks, of the same widths, for another text encoder."""
    wide = random_adapter(widths=(64, 128, 256, 256))
    steer(host_model(model_channels=64), wide)
    with pytest.raises(errors.MismatchError, match=r"made for sd15-mini.*16 transformer blocks.*is SD20 \(.*Load an SD1\.5"):
        steer(host_model("SD20", **SD2), wide)


def test_sd15_of_other_widths_is_told_with_both_widths(adapter):
    wide = host_model(model_channels=64)
    with pytest.raises(errors.MismatchError, match=r"widths \[32, 64, 128, 128\].*SD15.*\[64, 128, 256, 256\]"):
        steer(wide, adapter)


@pytest.mark.parametrize("family", [family for family in OTHER_FAMILIES if family != "SDXL"])
def test_the_dynamic_mask_names_a_model_without_a_unet(family):
    with pytest.raises(errors.MismatchError, match=rf"(?s)no bias \(SD1\.5, SD2, SDXL\).*is {family} \("):
        masked(transformer_model(family))


@pytest.mark.parametrize(("family", "changes"), [("SD20", SD2), ("SDXL", SDXL)])
def test_the_dynamic_mask_works_on_sd2_and_sdxl(family, changes):
    model = host_model(family, **changes)
    seen = set()
    patched = masked(model)
    patched.set_model_attn1_patch(lambda n, context, value, extra: seen.add(bool((n != context).any())) or (n, context, value))
    if family == "SDXL":  # its pooled text and sizes, which this small one takes at another width
        model.model.encode_adm = lambda **kwargs: torch.zeros(1, 16)
    plain, steered = (sample(m, (16, 16)) for m in (model, patched))
    assert torch.isfinite(steered).all()
    assert (steered - plain).abs().max() > 1e-3 * plain.abs().max()
    assert seen == {True}  # every self-attention has keys that are not its queries
    assert torch.equal(sample(model, (16, 16)), plain)


@pytest.mark.parametrize("inpaint_conds", [False, True])
def test_a_nine_channel_inpainting_model_works(adapter, inpaint_conds):
    model = host_model(in_channels=9)
    hole = torch.zeros(1, 1, 17, 12)
    hole[..., 5:12, 3:9] = 1
    options = {"noise_mask": hole, "latent": torch.randn(1, 4, 17, 12)} if inpaint_conds else {}
    plain, steered, mask_only = (sample(m, **options) for m in (model, steer(model, adapter), masked(model)))
    for result in (steered, mask_only):
        assert torch.isfinite(result).all()
        assert (result - plain).abs().max() > 1e-3 * plain.abs().max()
    assert torch.equal(sample(model, **options), plain)


# Row 10: inputs that do not belong together, or are not there


def test_tokens_of_another_knowledge_base_name_both(adapter):
    with pytest.raises(errors.MismatchError, match=rf"small\.safetensors.*{CODEBOOK[:12]}.*'other-kb'.*ffffffffffff.*belongs to the adapter"):
        steer(host_model(), adapter, kb_tokens=kb_tokens(codebook_sha256="f" * 64, knowledge_base="other-kb"))


@pytest.mark.parametrize("shape", [(1, TOKENS, TOKEN_WIDTH + 8), (1, TOKENS * 4, TOKEN_WIDTH)])
def test_tokens_of_another_size_name_both(adapter, shape):
    tokens = kb_tokens(positive=torch.zeros(shape), negative=torch.zeros(shape))
    with pytest.raises(errors.MismatchError, match=rf"{TOKENS} tokens of width {TOKEN_WIDTH}.*'small-kb'.*{shape[1]} of width {shape[2]}"):
        steer(host_model(), adapter, kb_tokens=tokens)


def test_an_adapter_without_kb_takes_tokens_of_any_knowledge_base():
    poseful = random_adapter(sections=("pose",))
    model = host_model()
    given = steer(model, poseful, kb_tokens=kb_tokens(codebook_sha256="f" * 64))
    assert torch.equal(sample(given), sample(steer(model, poseful, kb_tokens=None)))


NOTHING = {"kb_tokens": None, "pose_image": None, "mask": None}
ALL = ("kb", "dm", "pose")


@pytest.mark.parametrize(
    ("sections", "inputs", "said"),
    [
        (ALL, {"kb_tokens": None}, ["kb_tokens is not connected"]),
        (ALL, {"pose_image": None, "mask": MASK}, ["pose_image is not connected"]),
        (ALL, {"pose_image": None}, ["pose_image is not connected", "neither mask nor pose_image"]),
        (ALL, NOTHING, ["kb_tokens is not connected", "pose_image is not connected", "neither mask nor pose_image"]),
        (("kb", "dm"), {}, ["no pose section, so pose_image only gives the mask"]),
        (("kb",), {}, ["no pose section, so pose_image is not used"]),
        (("kb",), {"mask": MASK, "pose_image": None}, ["no dm section, so mask is not used"]),
        (("pose",), {}, ["no kb section, so kb_tokens is not used"]),
        (ALL, {}, []),
    ],
)
def test_what_is_off_is_said_once(caplog, sections, inputs, said):
    model, part = host_model(), random_adapter(sections=sections)
    with caplog.at_level(logging.INFO, logger="kbdm"):
        result = sample(steer(model, part, **inputs))
    told = [record.getMessage() for record in caplog.records if record.name == "kbdm"]
    assert len(told) == len(said)
    assert all("'small.safetensors'" in line and words in line for line, words in zip(told, said))
    assert torch.equal(result, sample(model)) is (inputs == NOTHING)


def test_a_section_without_its_input_is_as_if_it_were_not_in_the_file():
    model, whole, part = host_model(), random_adapter(), random_adapter(sections=("kb", "dm"))
    part.adapter.load_state_dict({key: value for key, value in whole.adapter.state_dict().items() if not key.startswith("pose.")})
    assert torch.equal(*(sample(steer(model, a, pose_image=None, mask=MASK)) for a in (whole, part)))


def test_an_empty_mask_is_said(caplog):
    with caplog.at_level(logging.INFO, logger="kbdm"):
        mask_node.patch(host_model(), torch.zeros(1, 8, 8), "linear", 1.0, 0.0, 1.0, "zero", "key", "all", 0.0, 1.0)
    said = [record.getMessage() for record in caplog.records if record.name == "kbdm"]
    assert said == ["Dynamic Mask Attention Patch: the mask is empty, so the model is left as it is."]
