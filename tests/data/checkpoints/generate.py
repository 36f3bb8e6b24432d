#!/usr/bin/env python3
"""Makes the files of tests/import.rs: tiny checkpoints of exactly the public layouts, and what PyTorch computes with them.
Run by hand, never in CI:

    pip install torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 timm==1.0.31 safetensors==0.8.0 numpy==2.4.6
    python tests/data/checkpoints/generate.py

`diad.ckpt`: a Lightning file in CompVis' layout, as PyTorch writes it: `model.diffusion_model.*`, `control_model.*`,
`first_stage_model.*`, `cond_stage_model.*`, moving averages, schedule buffers, and beside the `state_dict` objects of a
class that nobody has. `diffusers/`: the same weights as diffusers saves a pipeline. `hostile-*.ckpt`: pickles that create
a file when executed. That the names are the published ones is checked with diffusers' own converters, which read the
first layout and must give the second.

With `--full DIRECTORY` it writes files of the published sizes instead (4.3 GB each, one after the other: `--only`), with
`expected.safetensors` beside them: for the check at full size, see the last test of tests/import.rs.

A ResNet50 has one size only; its weights are computed from their names by a formula here and in the test.
"""

import argparse
import math
import os
import re

import numpy as np
import timm
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

HERE = os.path.dirname(os.path.abspath(__file__))
torch.set_grad_enabled(False)


def randomise(module):
    """Weights of variance 1/fan_in, norms around 1, biases off zero; all of them exact in f16."""
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))
        else:
            parameter.normal_(1 if "norm" in name and name.endswith("weight") else 0, 0.1)
        parameter.copy_(parameter.half().float())
    return module.eval()


def hashed(name, count):
    """Numbers in -1 to 1 from a name: FNV-1a of the name, then SplitMix64 of the index."""
    with np.errstate(over="ignore"):
        seed = np.uint64(0xCBF29CE484222325)
        for byte in name.encode():
            seed = (seed ^ np.uint64(byte)) * np.uint64(0x100000001B3)
        x = seed + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return torch.from_numpy(((x >> np.uint64(40)).astype(np.float64) / 2**23 - 1).astype(np.float32))


def resnet(image):
    """Stages of torchvision's ResNet50, as timm builds it."""
    model = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3)).eval()
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            continue
        numbers = hashed(name, value.numel()).reshape(value.shape)
        if value.dim() == 4:
            numbers = numbers * math.sqrt(3 / value[0].numel())
        elif name.endswith("running_var"):
            numbers = 1 + 0.5 * numbers
        elif name.endswith("weight"):
            numbers = 0.7 + 0.2 * numbers
        else:
            numbers = 0.1 * numbers
        value.copy_(numbers)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return model((image * 0.5 + 0.5 - mean[:, None, None]) / deviation[:, None, None])


def ldm_block(name):
    """The inside of a block of CompVis' U-Net, from diffusers'."""
    for theirs, ours in [
        ("norm1", "in_layers.0"),
        ("conv1", "in_layers.2"),
        ("time_emb_proj", "emb_layers.1"),
        ("norm2", "out_layers.0"),
        ("conv2", "out_layers.3"),
        ("conv_shortcut", "skip_connection"),
    ]:
        name = re.sub(rf"^{theirs}\.", f"{ours}.", name)
    return name


def ldm_unet(state, levels, blocks):
    """Names of CompVis' U-Net (or DiAD's control network) from diffusers' names."""
    named = {}
    for name, value in state.items():
        part = name.split(".")
        rest = ".".join(part[4:])
        level, unit = (int(part[1]), int(part[3])) if part[0] in ("down_blocks", "up_blocks") else (0, 0)
        position = level * (blocks + 1) + unit
        if part[0] == "time_embedding":
            ours = f"time_embed.{0 if part[1] == 'linear_1' else 2}.{part[2]}"
        elif part[0] == "conv_in":
            ours = f"input_blocks.0.0.{part[1]}"
        elif part[0] == "conv_norm_out":
            ours = f"out.0.{part[1]}"
        elif part[0] == "conv_out":
            ours = f"out.2.{part[1]}"
        elif part[0] == "mid_block":
            slot = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[part[1], part[2]]
            rest = ".".join(part[3:])
            ours = f"middle_block.{slot}.{rest if slot == 1 else ldm_block(rest)}"
        elif part[0] == "down_blocks" and part[2] == "downsamplers":
            ours = f"input_blocks.{(level + 1) * (blocks + 1)}.0.op.{part[-1]}"
        elif part[0] == "down_blocks":
            slot = 1 if part[2] == "attentions" else 0
            ours = f"input_blocks.{1 + position}.{slot}.{rest if slot else ldm_block(rest)}"
        elif part[0] == "up_blocks" and part[2] == "upsamplers":
            behind = 1 + any(key.startswith(f"up_blocks.{level}.attentions") for key in state)
            ours = f"output_blocks.{level * (blocks + 1) + blocks}.{behind}.conv.{part[-1]}"
        elif part[0] == "up_blocks":
            slot = 1 if part[2] == "attentions" else 0
            ours = f"output_blocks.{position}.{slot}.{rest if slot else ldm_block(rest)}"
        elif part[0] == "controlnet_cond_embedding":
            index = {"conv_in": 0, "conv_out": 14}.get(part[1])
            ours = f"input_hint_block.{2 * int(part[2]) + 2 if index is None else index}.{part[-1]}"
        elif part[0] == "controlnet_down_blocks":
            ours = f"zero_convs.{part[1]}.0.{part[-1]}"
        elif part[0] == "controlnet_mid_block":
            ours = f"middle_block_out.0.{part[-1]}"
        else:
            raise KeyError(name)
        named[ours] = value
    return named


def ldm_autoencoder(state, levels):
    named = {}
    for name, value in state.items():
        ours = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        ours = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", ours)
        ours = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", ours)
        ours = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", ours)
        ours = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", ours)
        ours = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", ours)
        if "mid_block.attentions.0" in ours:
            ours = ours.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            for theirs, short in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")):
                ours = ours.replace(theirs, short)
            # A linear layer in diffusers, a 1x1 convolution in CompVis.
            value = value[:, :, None, None] if value.dim() == 2 else value
        named[ours] = value
    return named


class Callback:
    """Stands for the objects that Lightning puts beside the weights; the importer has no such class."""

    def __init__(self):
        self.best = 0.5


class Hostile:
    """Creates a file in the working directory when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch HOSTILE-PICKLE-WAS-EXECUTED",)


def save(state, path):
    save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    os.chmod(path, 0o644)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--full")
    parser.add_argument("--only", choices=["ckpt", "diffusers"])
    args = parser.parse_args()
    full, out = bool(args.full), args.full or HERE
    torch.manual_seed(20261124)
    channels = (320, 640, 1280, 1280) if full else (4, 8, 8)
    attends = (True, True, True, False) if full else (True, True, False)
    width, tokens, groups = (768, 77, 32) if full else (8, 5, 2)
    shape = dict(
        in_channels=4,
        block_out_channels=channels,
        down_block_types=["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        layers_per_block=2,
        attention_head_dim=8 if full else 2,
        cross_attention_dim=width,
        norm_num_groups=groups,
        norm_eps=1e-5,
    )
    ups = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)]
    unet = randomise(UNet2DConditionModel(out_channels=4, up_block_types=ups, **shape))
    autoencoder = randomise(
        AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=(128, 256, 512, 512) if full else (4, 4, 8, 8),
            layers_per_block=2 if full else 1,
            latent_channels=4,
            norm_num_groups=groups,
        )
    )
    text = randomise(
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49_408 if full else 30,
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=12 if full else 2,
                num_attention_heads=12 if full else 2,
                max_position_embeddings=tokens,
                hidden_act="quick_gelu",
            )
        )
    )
    vocabulary = text.config.vocab_size
    ids = torch.tensor([[vocabulary - 2] + [vocabulary - 1] * (tokens - 1)])
    context = text(ids).last_hidden_state
    generator = torch.Generator().manual_seed(1)
    # The published size halves a latent three times, the tiny one twice.
    latent = torch.randn(1, 4, 8, 16, generator=generator) if full else torch.randn(1, 4, 4, 8, generator=generator)
    image = torch.rand(1, 3, 8 * latent.shape[2], 8 * latent.shape[3], generator=generator) * 2 - 1
    expected = {
        "latent": latent,
        "image": image,
        "context": context[0],
        "denoiser": unet(latent, torch.tensor([749.0]), context).sample,
        "autoencoder.mean": autoencoder.encode(image).latent_dist.mean,
        "autoencoder.decoded": autoencoder.decode(latent).sample,
        # A part of the channels: every one of them depends on all that comes before.
        **{f"features.{k}": stage[:, :32] for k, stage in enumerate(resnet(image))},
    }
    state = {f"model.diffusion_model.{n}": v for n, v in ldm_unet(unet.state_dict(), len(channels), 2).items()}
    named = ldm_autoencoder(autoencoder.state_dict(), 4)
    state.update({f"first_stage_model.{n}": v for n, v in named.items()})
    prefix = "cond_stage_model.transformer."
    names = {re.sub(r"^(?!text_model\.)", "text_model.", n): v for n, v in text.state_dict().items()}
    state.update({prefix + n: v for n, v in names.items()})

    # The converters of diffusers read the published layout: they must give back what was saved.
    read = convert_ldm_unet_checkpoint(dict(state), dict(unet.config))
    assert all(torch.equal(read[n], v) for n, v in unet.state_dict().items()), "the U-Net's names"
    read = convert_ldm_vae_checkpoint(dict(state), dict(autoencoder.config))
    assert all(torch.equal(read[n], v) for n, v in autoencoder.state_dict().items()), "the autoencoder's names"

    if not full:
        hint = (2, 3, 4, 6)
        control = randomise(
            ControlNetModel(conditioning_embedding_out_channels=hint, controlnet_conditioning_channel_order="rgb", **shape)
        )
        down, middle = control(latent, torch.tensor([749.0]), context, image, return_dict=False)
        named = ldm_unet(control.state_dict(), len(channels), 2)
        # DiAD's fusion, from the released code: nine strided convolutions, an instance norm and SiLU.
        fused = list(down)
        for j in range(3):
            added = 0
            for i in range(3):
                branch = torch.nn.Conv2d(down[3 + i].shape[1], channels[-1], 3, stride=2, padding=1, bias=False)
                randomise(branch)
                named[f"down{i + 1}{j + 1}.0.weight"] = branch.weight
                added = added + F.silu(F.instance_norm(branch(down[3 + i])))
            fused[6 + j] = F.silu(down[6 + j] + added)
        none = [torch.zeros(1)] * 6
        expected["guided"] = unet(
            latent,
            torch.tensor([749.0]),
            context,
            down_block_additional_residuals=none + fused[6:],
            mid_block_additional_residual=middle,
        ).sample
        state.update({f"control_model.{n}": v for n, v in named.items()})

    os.makedirs(out, exist_ok=True)
    if args.only != "diffusers":
        buffers = {name: torch.linspace(0.1, 0.9, 8) for name in ("betas", "alphas_cumprod", "sqrt_recipm1_alphas_cumprod")}
        average = {"model_ema.decay": torch.tensor(0.9999), "model_ema.diffusion_modelout2weight": torch.zeros(4)}
        half = {name: value.half() for name, value in {**state, **buffers, **average}.items()}
        half[prefix + "text_model.embeddings.position_ids"] = torch.arange(tokens)[None]
        file = {
            "epoch": 3,
            "global_step": 7,
            "callbacks": {"checkpoint": Callback()},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2, 2)}}}],
            "state_dict": half,
        }
        torch.save(file, os.path.join(out, "v1-5-pruned.ckpt" if full else "diad.ckpt"))
    if args.only != "ckpt":
        for part, model in (("unet", unet), ("vae", autoencoder), ("text_encoder", text)):
            folder = os.path.join(out, "diffusers", part)
            os.makedirs(folder, exist_ok=True)
            values = names if part == "text_encoder" else model.state_dict()
            file = "model" if part == "text_encoder" else "diffusion_pytorch_model"
            save({n: v.half() for n, v in values.items()}, os.path.join(folder, f"{file}.safetensors"))
    if not full:
        beside = {"state_dict": {"weight": torch.ones(2, 2)}, "callbacks": Hostile()}
        torch.save(beside, os.path.join(out, "hostile-beside.ckpt"))
        torch.save({"state_dict": {"weight": Hostile()}}, os.path.join(out, "hostile-inside.ckpt"))
    save(expected, os.path.join(out, "expected.safetensors"))


if __name__ == "__main__":
    main()
