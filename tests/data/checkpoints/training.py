#!/usr/bin/env python3
"""Makes `training.safetensors` for tests/training.rs: what PyTorch computes when it samples with, and trains, the networks in
`diad.ckpt`. Run by hand, never in CI, with the packages of generate.py:

    python tests/data/checkpoints/training.py

- four steps of guided DDIM on the trailing grid;
- two steps of AdamW on the paper's loss (mean squared error of the noise; the denoiser's reading half is frozen);
- LPIPS as CompVis' `taming/modules/losses/lpips.py` computes it, with weights from their names by a formula;
- two steps of Adam on the autoencoder's loss.
"""

import math
import os
import sys

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from generate import HERE, Callback, hashed, ldm_autoencoder, ldm_unet  # noqa: E402

sys.modules["__main__"].Callback = Callback
torch.set_grad_enabled(True)

CHANNELS, GROUPS, WIDTH = (4, 8, 8), 2, 8
SHAPE = dict(
    in_channels=4,
    block_out_channels=CHANNELS,
    down_block_types=["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    layers_per_block=2,
    attention_head_dim=2,
    cross_attention_dim=WIDTH,
    norm_num_groups=GROUPS,
    norm_eps=1e-5,
)


def filled(module, names, state):
    """The module with the checkpoint's values; `names` leads from CompVis' names to diffusers'."""
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    module.load_state_dict({ours: state[theirs].float().reshape(shapes[ours]) for theirs, ours in names.items()})
    return module.train()


def same(module):
    return {name: name for name in module.state_dict()}


class Diad(torch.nn.Module):
    def __init__(self, state):
        super().__init__()
        ups = ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]
        unet = UNet2DConditionModel(out_channels=4, up_block_types=ups, **SHAPE)
        control = ControlNetModel(
            conditioning_embedding_out_channels=(2, 3, 4, 6), controlnet_conditioning_channel_order="rgb", **SHAPE
        )
        part = lambda prefix: {n[len(prefix) :]: v for n, v in state.items() if n.startswith(prefix)}  # noqa: E731
        self.unet = filled(unet, ldm_unet(same(unet), 3, 2), part("model.diffusion_model."))
        own = part("control_model.")
        self.control = filled(control, ldm_unet(same(control), 3, 2), own)
        self.fusion = torch.nn.ParameterDict(
            {f"{i}{j}": own[f"down{i}{j}.0.weight"].float() for i in (1, 2, 3) for j in (1, 2, 3)}
        )
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(name.startswith(("up_blocks", "conv_norm_out", "conv_out")))

    def forward(self, latent, t, context, image):
        context = context.expand(len(latent), -1, -1)
        down, middle = self.control(latent, t, context, image, return_dict=False)
        fused = list(down)
        for j in range(3):
            branches = (F.conv2d(down[3 + i], self.fusion[f"{i + 1}{j + 1}"], stride=2, padding=1) for i in range(3))
            fused[6 + j] = F.silu(down[6 + j] + sum(F.silu(F.instance_norm(branch)) for branch in branches))
        return self.unet(
            latent,
            t,
            context,
            down_block_additional_residuals=[torch.zeros(1)] * 6 + fused[6:],
            mid_block_additional_residual=middle,
        ).sample

    def named(self):
        """Parameters by CompVis' names."""
        values = {}
        for prefix, module in (("model.diffusion_model.", self.unet), ("control_model.", self.control)):
            values.update({prefix + n: v for n, v in ldm_unet(module.state_dict(), 3, 2).items()})
        values.update({f"control_model.down{n}.0.weight": v for n, v in self.fusion.items()})
        return values


def lpips(a, b):
    """taming's LPIPS; weights of variance 1/fan_in, heads not negative."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    total, index, width = 0, 0, 3
    a, b = ((x - shift[:, None, None]) / scale[:, None, None] for x in (a, b))
    unit = lambda x: x / (torch.sqrt(torch.sum(x**2, dim=1, keepdim=True)) + 1e-10)  # noqa: E731
    for k, slice_ in enumerate([(64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3]):
        if k:
            a, b, index = F.max_pool2d(a, 2), F.max_pool2d(b, 2), index + 1
        for channels in slice_:
            name = f"features.{index}"
            weight = hashed(f"{name}.weight", channels * width * 9).reshape(channels, width, 3, 3)
            weight, bias = weight * math.sqrt(6 / (9 * width)), 0.1 * hashed(f"{name}.bias", channels)
            a, b = (F.relu(F.conv2d(x, weight, bias, padding=1)) for x in (a, b))
            index, width = index + 2, channels
        head = hashed(f"lin{k}.model.1.weight", width).abs().reshape(1, width, 1, 1)
        total = total + F.conv2d((unit(a) - unit(b)) ** 2, head).mean([2, 3], keepdim=True)
    return total


def main():
    state = torch.load(os.path.join(HERE, "diad.ckpt"), weights_only=False)["state_dict"]
    known = load_file(os.path.join(HERE, "expected.safetensors"))
    context = known["context"][None]
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - beta, 0)
    generator = torch.Generator().manual_seed(7)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    out = {}

    model = Diad(state)
    out["sample.noise"] = noise = normal(1, 4, 4, 8)
    x = bar[999].sqrt() * known["latent"] + (1 - bar[999]).sqrt() * noise
    grid = [999, 749, 499, 249]
    with torch.no_grad():
        for k, t in enumerate(grid):
            eps = model(x.float(), torch.tensor([float(t)]), context, known["image"])
            clean = (x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt()
            x = clean if k == 3 else bar[grid[k + 1]].sqrt() * clean + (1 - bar[grid[k + 1]]).sqrt() * eps
    out["sample.latent"] = x.float()

    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    for step, timesteps in enumerate([(101, 901), (499, 3)]):
        latent, noise, image = normal(2, 4, 4, 8), normal(2, 4, 4, 8), torch.tanh(normal(2, 3, 32, 64))
        t = torch.tensor(timesteps)
        a = bar[t].float()[:, None, None, None]
        loss = F.mse_loss(model(a.sqrt() * latent + (1 - a).sqrt() * noise, t.float(), context, image), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        names = dict(latent=latent, noise=noise, image=image, loss=loss.detach()[None], timesteps=t.float())
        out.update({f"train.{step}.{name}": value for name, value in names.items()})
    # None of the fusion's own weights: behind an instance norm of two cells their gradient is rounding, which Adam scales
    # up. Zero convolution 4 learns through the fusion alone.
    kept = [
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
        "model.diffusion_model.output_blocks.0.0.in_layers.2.weight",
        "model.diffusion_model.output_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
        "model.diffusion_model.out.2.weight",
        "control_model.input_hint_block.0.weight",
        "control_model.input_blocks.4.1.transformer_blocks.0.ff.net.0.proj.weight",
        "control_model.zero_convs.8.0.weight",
        "control_model.zero_convs.4.0.bias",
        "control_model.middle_block_out.0.bias",
        "control_model.time_embed.0.weight",
    ]
    named = model.named()
    out.update({f"trained.{name}": named[name].detach() for name in kept})

    autoencoder = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=GROUPS,
    )
    own = {n[len("first_stage_model.") :]: v for n, v in state.items() if n.startswith("first_stage_model.")}
    names = ldm_autoencoder({n: torch.zeros(()) for n in autoencoder.state_dict()}, 4)
    names = dict(zip(names, autoencoder.state_dict()))
    autoencoder = filled(autoencoder, names, own)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=1e-3, betas=(0.5, 0.9))
    for step in range(2):
        image, noise = torch.tanh(normal(2, 3, 32, 64)), normal(2, 4, 4, 8)
        posterior = autoencoder.encode(image).latent_dist
        shown = autoencoder.decode(posterior.mean + posterior.std * noise).sample
        distance = lpips(image, shown)
        if step == 0:
            out["lpips"] = distance.detach().clone()
            out["lpips.shown"] = shown.detach().clone()
        rec = (image - shown).abs() + distance
        loss = rec.sum() / len(image) + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        out.update({f"autoencoder.{step}.{n}": v for n, v in dict(image=image, noise=noise, loss=loss.detach()[None]).items()})
    values = autoencoder.state_dict()
    for name in ("encoder.conv_in.weight", "decoder.conv_out.weight", "decoder.mid.attn_1.q.weight", "quant_conv.bias"):
        value = values[names[name]].detach()
        out[f"finetuned.{name}"] = value[:, :, None, None] if name.endswith("q.weight") else value
    save_file({n: v.float().contiguous() for n, v in out.items()}, os.path.join(HERE, "training.safetensors"))


main()
