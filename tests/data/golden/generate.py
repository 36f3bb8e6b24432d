#!/usr/bin/env python3
"""Makes the fixtures of tests/golden_model.rs from published PyTorch modules. Run by hand, never in CI:

    pip install torch==2.15.0 diffusers==0.42.1 safetensors==0.8.0 numpy==2.4.6 timm==1.0.31
    python tests/data/golden/generate.py

The reference is `diffusers` wherever it has the layer: ResnetBlock2D, Attention, Downsample2D, Upsample2D,
AutoencoderKL, UNet2DModel, UNet2DConditionModel, ControlNetModel, DDPMScheduler, DDIMScheduler; the backbones are timm's. Where it has none (edge networks, guidance, repair, refine head, maps,
sketch, losses, deviation correction) the reference is the formula in plain torch or numpy operations.

Weights are seeded random numbers, also in the norms, so that no parameter is neutral. They are stored under our names,
in PyTorch's layout; the test loads them through burn-store's PyTorch adapter. Sides and batch differ from each other
wherever they can, so that a swapped axis shows.
"""

import math
import os
import re

import numpy as np
import timm
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, DDPMScheduler, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from safetensors.torch import load_file, save_file

HERE = os.path.dirname(os.path.abspath(__file__))
LIMIT = 4_000_000
GROUPS = 4

torch.manual_seed(20260801)
torch.set_grad_enabled(False)
total = 0


def randomise(module, half=False):
    """Fills every parameter: weights of variance 1/fan_in, norms around 1, biases off zero; exact in f16 if asked."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()))
        else:
            parameter.normal_(0, 0.1)
    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.weight.normal_(1, 0.2)
    for parameter in module.parameters() if half else ():
        parameter.copy_(parameter.half().float())
    return module.eval()


def weights(prefix, module, rules):
    """State of a module under our names: each (pattern, replacement) is applied in turn."""
    named = {}
    for name, value in module.state_dict().items():
        ours = name
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        # Plain attention is linear in diffusers and a pointwise convolution here; the transformer's is linear in both.
        if re.search(r"attention\.(query|key|value|output)\.weight$|^(query|key|value|output)\.weight$", ours) and value.dim() == 2:
            value = value[:, :, None, None]
        named[f"{prefix}.{ours}"] = value
    return named


def save(name, tensors):
    global total
    path = os.path.join(HERE, f"{name}.safetensors")
    stored = {}
    for key, value in tensors.items():
        value = torch.as_tensor(value).float().contiguous().clone()
        # In half the bytes where nothing is lost.
        stored[key] = value.half() if torch.equal(value.half().float(), value) else value
    save_file(stored, path)
    os.chmod(path, 0o644)
    total += os.path.getsize(path)
    print(f"{os.path.getsize(path):>9} {path}")


RESNET = [(r"time_emb_proj", "embedding"), (r"conv_shortcut", "shortcut")]
ATTENTION = [
    (r"group_norm", "norm"),
    (r"to_q", "query"),
    (r"to_k", "key"),
    (r"to_v", "value"),
    (r"to_out\.0", "output"),
]


def blocks():
    out = {}
    x = torch.randn(2, 8, 6, 10)
    embedding = torch.randn(2, 12)
    out["input"], out["embedding"] = x, embedding

    def residual(name, channels, temb):
        block = randomise(
            ResnetBlock2D(
                in_channels=8, out_channels=channels, temb_channels=temb, groups=GROUPS, eps=1e-6, non_linearity="swish"
            )
        )
        out.update(weights(f"{name}.weights", block, RESNET))
        out[f"{name}.output"] = block(x, embedding if temb else None)

    residual("residual_same", 8, None)
    residual("residual_wider", 16, 12)

    for name, heads in [("attention_1", 1), ("attention_4", 4)]:
        block = randomise(
            Attention(
                8, heads=heads, dim_head=8 // heads, norm_num_groups=GROUPS, eps=1e-6, bias=True, residual_connection=True
            )
        )
        out.update(weights(f"{name}.weights", block, ATTENTION))
        out[f"{name}.output"] = block(x)

    resamplers = {
        "down_symmetric": Downsample2D(8, use_conv=True, out_channels=12, padding=1, name="op"),
        "down_asymmetric": Downsample2D(8, use_conv=True, out_channels=12, padding=0, name="op"),
        "up_smoothing": Upsample2D(8, use_conv=True, out_channels=12),
    }
    for name, block in resamplers.items():
        out.update(weights(f"{name}.weights", randomise(block), []))
        out[f"{name}.output"] = block(x)

    # Edge blocks: no published twin, so plain torch operations.
    for name, channels, activation, temb in [("edge_same", 8, F.relu, None), ("edge_wider", 16, F.silu, 12)]:
        block = torch.nn.ModuleDict(
            {
                "depthwise": torch.nn.Conv2d(8, 8, 3, padding=1, groups=8),
                "norm": torch.nn.GroupNorm(GROUPS, 8, eps=1e-5),
                "expand": torch.nn.Conv2d(8, 2 * channels, 1),
                "project": torch.nn.Conv2d(2 * channels, channels, 1),
            }
        )
        if temb:
            block["embedding"] = torch.nn.Linear(temb, 2 * channels)
            block["shortcut"] = torch.nn.Conv2d(8, channels, 1)
        randomise(block)
        inner = block["expand"](block["norm"](block["depthwise"](x)))
        if temb:
            inner = inner + block["embedding"](activation(embedding))[:, :, None, None]
        skip = block["shortcut"](x) if temb else x
        out.update(weights(f"{name}.weights", block, []))
        out[f"{name}.output"] = skip + block["project"](activation(inner))

    fold, mix = randomise(torch.nn.Conv2d(32, 12, 1)), randomise(torch.nn.Conv2d(8, 12, 1))
    out.update(weights("down_folding.weights.conv", fold, []))
    out["down_folding.output"] = fold(F.pixel_unshuffle(x, 2))
    out.update(weights("up_pointwise.weights.conv", mix, []))
    out["up_pointwise.output"] = F.interpolate(mix(x), scale_factor=2, mode="nearest")
    out["space_to_depth.output"] = F.pixel_unshuffle(torch.cat([x, x], 2)[:, :, :12, :8], 4)

    timesteps = torch.tensor([0.0, 4.0, 249.0, 999.0])
    out["timesteps"] = timesteps
    out["sinusoidal.output"] = get_timestep_embedding(timesteps, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    save("blocks", out)


def autoencoder():
    widths = (8, 16, 16, 24)
    model = randomise(
        AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            norm_num_groups=GROUPS,
        )
    )
    rules = [
        (r"(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"levels.\2.blocks.\3"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"levels.\1.down"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", r"levels.\1.up"),
        (r"mid_block\.resnets\.0", "middle.block1"),
        (r"mid_block\.resnets\.1", "middle.block2"),
        (r"mid_block\.attentions\.0", "middle.attention"),
        (r"conv_norm_out", "norm"),
        (r"^quant_conv", "quant"),
        (r"^post_quant_conv", "post_quant"),
        *RESNET,
        *ATTENTION,
    ]
    image, latent = torch.randn(2, 3, 32, 64), torch.randn(2, 4, 4, 8)
    posterior = model.encode(image).latent_dist
    noise = torch.randn_like(posterior.mean)
    wide = DiagonalGaussianDistribution(torch.randn(2, 8, 4, 8) * 20)
    out = weights("weights", model, rules)
    out.update(
        {
            "image": image,
            "moments": posterior.parameters,
            "mean": posterior.mean,
            "noise": noise,
            "sample": posterior.mean + posterior.std * noise,
            "kl": posterior.kl().mean().reshape(1),
            "latent": latent,
            "decoded": model.decode(latent / model.config.scaling_factor).sample,
            "wide.moments": wide.parameters,
            "wide.log_variance": wide.logvar,
        }
    )
    save("autoencoder", out)


def denoiser():
    """Returns the network for the samplers."""
    model = randomise(
        UNet2DModel(
            in_channels=4,
            out_channels=4,
            block_out_channels=(8, 16, 16),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2,
            attention_head_dim=4,
            norm_num_groups=GROUPS,
            norm_eps=1e-5,
            class_embed_type="identity",
        )
    )
    rules = [
        (r"^time_embedding\.linear_", "time.linear"),
        (r"^(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1.\2.units.\3.block"),
        (r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)", r"\1.\2.units.\3.attention"),
        (r"^down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.down"),
        (r"^up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.up"),
        (r"^mid_block\.resnets\.0", "middle_in.block"),
        (r"^mid_block\.attentions\.0", "middle_in.attention"),
        (r"^mid_block\.resnets\.1", "middle_out"),
        (r"^conv_norm_out", "norm"),
        *RESNET,
        *ATTENTION,
    ]
    latent = torch.randn(2, 4, 8, 12)
    timesteps = torch.tensor([3.0, 749.0])
    none = torch.zeros(2, 32)
    classes = torch.randn(2, 32)
    out = weights("weights", model, rules)
    out.update({"latent": latent, "timesteps": timesteps, "class": classes})
    out["plain"] = model(latent, timesteps, none).sample
    out["classed"] = model(latent, timesteps, classes).sample

    # Control as ControlNet injects it: added to the middle's output and to the skips of the coarsest level, which are
    # those that the first decoder block consumes.
    middle = torch.randn(2, 16, 2, 3)
    skips = [torch.randn(2, 16, 2, 3) for _ in range(3)]

    def controlled(_, args, kwargs):
        values = dict(zip(("hidden_states", "res_hidden_states_tuple", "temb"), args)) | kwargs
        values["hidden_states"] = values["hidden_states"] + middle
        seen = values["res_hidden_states_tuple"]
        assert len(seen) == len(skips)
        values["res_hidden_states_tuple"] = tuple(skip + added for skip, added in zip(seen, skips))
        return (), values

    hook = model.up_blocks[0].register_forward_pre_hook(controlled, with_kwargs=True)
    out["guided"] = model(latent, timesteps, classes).sample
    hook.remove()
    out["guidance.middle"] = middle
    out.update({f"guidance.skips.{k}": skip for k, skip in enumerate(skips)})
    save("denoiser", out)
    return lambda x, t: model(x, float(t) * torch.ones(x.shape[0]), torch.zeros(x.shape[0], 32)).sample


SD_UNET = [
    (r"^time_embedding\.linear_", "time.linear"),
    (r"^(down|up)_blocks\.(\d+)\.resnets\.(\d+)", r"\1.\2.units.\3.block"),
    (r"^(down|up)_blocks\.(\d+)\.attentions\.(\d+)", r"\1.\2.units.\3.transformer"),
    (r"^down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.down"),
    (r"^up_blocks\.(\d+)\.upsamplers\.0", r"up.\1.up"),
    (r"^mid_block\.resnets\.0", "middle_in.block"),
    (r"^mid_block\.attentions\.0", "middle_in.transformer"),
    (r"^mid_block\.resnets\.1", "middle_out"),
    (r"^conv_norm_out", "norm"),
    (r"time_emb_proj", "embedding"),
    (r"conv_shortcut", "shortcut"),
    (r"proj_in", "project_in"),
    (r"proj_out", "project_out"),
    (r"transformer_blocks\.0\.attn1", "own"),
    (r"transformer_blocks\.0\.attn2", "context"),
    (r"transformer_blocks\.0\.ff\.net\.0\.proj", "gate"),
    (r"transformer_blocks\.0\.ff\.net\.2", "shrink"),
    (r"transformer_blocks\.0\.", ""),
    (r"to_q", "query"),
    (r"to_k", "key"),
    (r"to_v", "value"),
    (r"to_out\.0", "output"),
]
SD_SHAPE = dict(
    in_channels=4,
    block_out_channels=(8, 16, 16),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=2,
    attention_head_dim=4,
    cross_attention_dim=12,
    norm_num_groups=GROUPS,
    norm_eps=1e-5,
)


def stable_diffusion():
    """The U-Net of Stable Diffusion, and control networks on the skeleton of ControlNet."""
    unet = randomise(
        UNet2DConditionModel(
            out_channels=4, up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), **SD_SHAPE
        ),
        half=True,
    )
    control = randomise(
        ControlNetModel(conditioning_embedding_out_channels=(4, 6, 8, 12), controlnet_conditioning_channel_order="rgb", **SD_SHAPE),
        half=True,
    )
    hint_names = [
        (r"^controlnet_cond_embedding\.conv_in", "hint.0"),
        (r"^controlnet_cond_embedding\.blocks\.(\d+)", lambda m: f"hint.{int(m[1]) + 1}"),
        (r"^controlnet_cond_embedding\.conv_out", "hint_out"),
        (r"^controlnet_down_blocks", "zeros"),
        (r"^controlnet_mid_block", "zero_middle"),
    ]
    latent, context = torch.randn(2, 4, 8, 12), torch.randn(1, 5, 12)
    timesteps = torch.tensor([3.0, 749.0])
    image = torch.randn(2, 3, 64, 96)
    both = context.expand(2, -1, -1)
    out = weights("unet", unet, SD_UNET)
    trunk = weights("control", control, hint_names + SD_UNET)
    out.update(trunk)
    out.update({"latent": latent, "timesteps": timesteps, "image": image, "context": context[0]})
    out["plain"] = unet(latent, timesteps, both).sample

    def guided(skips, middle):
        # diffusers adds to every skip: where there is no control, nothing.
        controls = [torch.zeros(1)] * (9 - len(skips)) + list(skips)
        return unet(
            latent, timesteps, both, down_block_additional_residuals=controls, mid_block_additional_residual=middle
        ).sample

    def instance_norm(x):
        return F.instance_norm(x, eps=1e-5)

    # DiAD: hint, trunk and zero convolutions are ControlNet's; its fusion (SFF) is the released formula.
    down, middle = control(latent, timesteps, both, image, return_dict=False)
    branches = [torch.nn.Conv2d([8, 16, 16][i], 16, 3, stride=2, padding=1, bias=False) for i in range(3) for _ in range(3)]
    for k, branch in enumerate(branches):
        randomise(branch, half=True)
        out[f"sff.spatial_fusion.branches.{k}.weight"] = branch.weight
    # The shape of three levels: skips 3 to 5 are the sources, 6 to 8 the targets.
    fused = list(down)
    for j in range(3):
        fused[6 + j] = F.silu(
            down[6 + j]
            + sum(F.silu(instance_norm(branches[3 * i + j](down[3 + i]))) for i in range(3))
        )
    out["diad.middle"] = middle
    out.update({f"diad.skips.{k}": fused[6 + k] for k in range(3)})
    out["diad.out"] = guided(fused[6:], middle)
    out["diad.all"] = guided(fused, middle)

    # DSAD: the trunk with a hint from SSFF, and MFF beside the zero convolutions of the coarsest skips.
    sketch = torch.rand(2, 1, 64, 96)
    seen = [torch.randn(2, c, 64 // s, 96 // s) for c, s in zip((6, 10, 12), (4, 8, 16))]
    part = torch.nn.ModuleDict(
        {
            "hint_out": torch.nn.Conv2d(8, 8, 3, padding=1),
            "fusion": torch.nn.ModuleDict(
                {
                    "sketch": torch.nn.ModuleList(
                        torch.nn.Conv2d(i, o, 3, stride=s, padding=1)
                        for i, o, s in ((1, 3, 1), (3, 4, 2), (4, 5, 2), (5, 6, 2))
                    ),
                    "semantic": torch.nn.ModuleDict(
                        {
                            "fine": torch.nn.Conv2d(10, 4, 1),
                            "coarse": torch.nn.Conv2d(12, 4, 1),
                            "norm": torch.nn.GroupNorm(GROUPS, 8),
                        }
                    ),
                    "mix": torch.nn.Conv2d(12 + 6 + 8, 8, 1),
                    "norm1": torch.nn.GroupNorm(GROUPS, 8),
                    "conv": torch.nn.Conv2d(8, 8, 3, padding=1),
                    "norm2": torch.nn.GroupNorm(GROUPS, 8),
                    "gates": torch.nn.ModuleDict(
                        {
                            "squeeze": torch.nn.Linear(8, 2),
                            "excite": torch.nn.Linear(2, 8),
                            "spatial": torch.nn.Conv2d(2, 1, 7, padding=3),
                        }
                    ),
                }
            ),
            "multi_scale": torch.nn.ModuleDict(
                {
                    "laterals": torch.nn.ModuleList(torch.nn.Conv2d(c, 6, 1) for c in (8, 16, 16)),
                    "downs": torch.nn.ModuleList(
                        torch.nn.Conv2d(6, 6, 3, stride=2, padding=1, bias=False) for _ in range(2)
                    ),
                    "outputs": torch.nn.ModuleList(torch.nn.Conv2d(6, 16, 1) for _ in range(4)),
                }
            ),
        }
    )
    randomise(part, half=True)
    out.update({f"dsad.{name}": value for name, value in part.state_dict().items()})
    scalars = torch.randn(2)
    out.update({f"dsad.multi_scale.weights.{k}": scalars[k : k + 1] for k in range(2)})
    fusion, mff = part["fusion"], part["multi_scale"]
    embedding = control.controlnet_cond_embedding
    picture = F.silu(embedding.conv_in(image))
    for block in embedding.blocks:
        picture = F.silu(block(picture))
    drawn = sketch
    for conv in fusion["sketch"]:
        drawn = F.silu(conv(drawn))
    semantic = fusion["semantic"]
    larger = F.interpolate(seen[2], size=seen[1].shape[2:], mode="bilinear", align_corners=False)
    semantic = F.silu(semantic["norm"](torch.cat([semantic["fine"](seen[1]), semantic["coarse"](larger)], 1)))
    mixed = F.silu(fusion["norm1"](fusion["mix"](torch.cat([picture, drawn, semantic], 1))))
    mixed = F.silu(fusion["norm2"](fusion["conv"](mixed)))
    gates = fusion["gates"]
    channel = torch.sigmoid(gates["excite"](F.silu(gates["squeeze"](mixed.mean((2, 3))))))[:, :, None, None]
    spatial = torch.sigmoid(gates["spatial"](torch.cat([mixed.mean(1, keepdim=True), mixed.amax(1, keepdim=True)], 1)))
    hint = part["hint_out"](mixed + mixed * channel * spatial)
    out["dsad.hint"] = hint

    trunk = {}
    hooks = [
        conv.register_forward_hook(lambda _, args, __, k=k: trunk.__setitem__(k, args[0]))
        for k, conv in enumerate([*control.controlnet_down_blocks, control.controlnet_mid_block])
    ]
    plain, control.controlnet_cond_embedding.forward = embedding.forward, lambda _: hint
    down, middle = control(latent, timesteps, both, image, return_dict=False)
    control.controlnet_cond_embedding.forward = plain
    for hook in hooks:
        hook.remove()

    def settle(x):
        return F.silu(instance_norm(x))

    fused = settle(mff["laterals"][0](trunk[2]))
    for k, level in enumerate((trunk[5], trunk[8])):
        fused = settle(mff["laterals"][k + 1](level)) + scalars[k] * settle(mff["downs"][k](fused))
    skips = [down[6 + k] + mff["outputs"][k](fused) for k in range(3)]
    middle = middle + mff["outputs"][3](fused)
    out["dsad.middle"] = middle
    out.update({f"dsad.skips.{k}": skip for k, skip in enumerate(skips)})
    out["dsad.out"] = guided(skips, middle)
    out.update({"sketch": sketch, **{f"seen.{k}": stage for k, stage in enumerate(seen)}})
    save("stable_diffusion", out)


def schedules():
    out = {}
    stable = DDPMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    cosine = DDPMScheduler(num_train_timesteps=10, beta_schedule="squaredcos_cap_v2")
    out["scaled_linear"], out["squared_cosine"] = stable.alphas_cumprod, cosine.alphas_cumprod
    sampler = ddim()
    for steps in (1, 2, 4, 5, 8, 10, 20, 50):
        sampler.set_timesteps(steps)
        out[f"trailing.{steps}"] = sampler.timesteps
    save("schedule", out)


def ddim():
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        prediction_type="epsilon",
    )


def samplers(predict):
    """Runs on the weights of denoiser.safetensors."""
    latent, noise = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 8, 12)
    out = {"latent": latent, "noise": noise}
    for steps in (1, 2, 4):
        scheduler = ddim()
        scheduler.set_timesteps(steps)
        x = scheduler.add_noise(latent, noise, scheduler.timesteps[:1])
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, t), t, x, eta=0.0).prev_sample
        out[f"ddim.{steps}"] = x

    # Deviation correction: x0 = x - sqrt(1 - a_t) d, then x = x0 + sqrt(1 - a_t') d, the last step returns x0.
    levels = DDPMScheduler(num_train_timesteps=10, beta_schedule="squaredcos_cap_v2").alphas_cumprod.double().numpy()
    grids = {1: [9], 2: [9, 4], 4: [9, 7, 4, 2], 8: [9, 8, 7, 5, 4, 3, 2, 0]}
    for steps, grid in grids.items():
        x = latent.double().numpy()
        for k, t in enumerate(grid):
            d = predict(torch.from_numpy(x).float(), t).double().numpy()
            x = x - np.sqrt(1 - levels[t]) * d
            if k + 1 < steps:
                x = x + np.sqrt(1 - levels[grid[k + 1]]) * d
        out[f"deviation.{steps}"] = torch.from_numpy(x)
    save("sampler", out)


def scores():
    """Anomaly components, sketch and losses in torch's own functions."""
    seen = [torch.rand(2, c, h, w) for c, h, w in [(6, 8, 16), (10, 4, 8), (12, 2, 4)]]
    redrawn = [torch.rand_like(stage) for stage in seen]
    resize = lambda map: F.interpolate(map, size=(32, 64), mode="bilinear", align_corners=True)
    out = {f"seen.{k}": stage for k, stage in enumerate(seen)}
    out.update({f"redrawn.{k}": stage for k, stage in enumerate(redrawn)})
    out["feature_map"] = sum(
        resize(1 - F.cosine_similarity(a, b, dim=1, eps=1e-8)[:, None]) for a, b in zip(seen, redrawn)
    )
    before, after = torch.randn(2, 8, 4, 8), torch.randn(2, 8, 4, 8)
    out["latent.seen"], out["latent.after"] = before, after
    out["latent_map"] = resize((before - after).abs().mean(1, keepdim=True))

    image = torch.rand(2, 3, 24, 40) * 2 - 1
    grey = (0.299 * image[:, :1] + 0.587 * image[:, 1:2] + 0.114 * image[:, 2:]) / 2 + 0.5
    axis = torch.arange(-3.0, 4.0)
    gauss = torch.exp(-(axis**2) / 2)
    gauss = torch.outer(gauss, gauss) / gauss.sum() ** 2
    smooth = F.conv2d(F.pad(grey, (3, 3, 3, 3), mode="replicate"), gauss[None, None])
    sobel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    edges = F.conv2d(F.pad(smooth, (1, 1, 1, 1), mode="replicate"), torch.stack([sobel, sobel.T])[:, None])
    strength = torch.sqrt((edges**2).sum(1, keepdim=True) + 1e-8)
    out["image"] = image
    out["sketch"] = torch.tanh(strength / (3 * strength.mean((2, 3), keepdim=True) + 1e-3))

    logits, mask = torch.randn(2, 1, 6, 10) * 3, (torch.rand(2, 1, 6, 10) > 0.7).float()
    p = torch.sigmoid(logits)
    hit = torch.where(mask > 0, p, 1 - p)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, mask, reduction="none")
    out["logits"], out["mask"] = logits, mask
    out["focal"] = ((1 - hit) ** 2 * cross_entropy).mean().reshape(1)
    dice = 1 - (2 * (p * mask).sum((1, 2, 3)) + 1) / (p.sum((1, 2, 3)) + mask.sum((1, 2, 3)) + 1)
    out["dice"] = dice.mean().reshape(1)
    save("score", out)


class EdgeBlock(torch.nn.Module):
    """y = skip(x) + W2 relu(W1 norm(dw(x)))"""

    def __init__(self, channels, output):
        super().__init__()
        self.depthwise = torch.nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm = torch.nn.GroupNorm(GROUPS, channels, eps=1e-5)
        self.expand = torch.nn.Conv2d(channels, 2 * output, 1)
        self.project = torch.nn.Conv2d(2 * output, output, 1)
        if channels != output:
            self.shortcut = torch.nn.Conv2d(channels, output, 1)

    def forward(self, x):
        skip = self.shortcut(x) if hasattr(self, "shortcut") else x
        return skip + self.project(F.relu(self.expand(self.norm(self.depthwise(x)))))


class Fold(torch.nn.Module):
    def __init__(self, channels, output):
        super().__init__()
        self.conv = torch.nn.Conv2d(4 * channels, output, 1)

    def forward(self, x):
        return self.conv(F.pixel_unshuffle(x, 2))


class Grow(torch.nn.Module):
    def __init__(self, channels, output):
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, output, 1)

    def forward(self, x):
        return F.interpolate(self.conv(x), scale_factor=2, mode="nearest")


def tree(**parts):
    """A module with named parts: its state has the names of our modules."""
    module = torch.nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module


double = lambda x: F.interpolate(x, scale_factor=2, mode="nearest")
conv1 = lambda channels, output: torch.nn.Conv2d(channels, output, 1)
conv3 = lambda channels, output, stride=1: torch.nn.Conv2d(channels, output, 3, stride=stride, padding=1)
parts = torch.nn.ModuleList
run = lambda blocks, x: [x := block(x) for block in blocks][-1]


def edge_networks():
    """The networks of the edge profiles, small, from their description: nothing published has this shape."""
    out = {}
    image = torch.rand(2, 3, 32, 64) * 2 - 1
    sketch = torch.rand(2, 1, 32, 64)
    seen = [torch.randn(2, c, h, w) for c, h, w in [(6, 8, 16), (10, 4, 8), (12, 2, 4)]]
    redrawn = [torch.randn_like(stage) for stage in seen]
    out.update({"image": image, "sketch": sketch})
    out.update({f"seen.{k}": stage for k, stage in enumerate(seen)})
    out.update({f"redrawn.{k}": stage for k, stage in enumerate(redrawn)})

    # Autoencoder: patch 4, encoder 8 and 12 channels, decoder 12 and 16, one block a level, 5 latent channels.
    middle = lambda channels: tree(block1=EdgeBlock(channels, channels), block2=EdgeBlock(channels, channels))
    encoder = tree(
        conv_in=conv3(48, 8),
        levels=parts([tree(blocks=parts([EdgeBlock(8, 8)]), down=Fold(8, 8)), tree(blocks=parts([EdgeBlock(8, 12)]))]),
        middle=middle(12),
        norm=torch.nn.GroupNorm(GROUPS, 12, eps=1e-5),
        conv_out=conv3(12, 10),
    )
    decoder = tree(
        conv_in=conv3(5, 16),
        middle=middle(16),
        levels=parts(
            [
                tree(blocks=parts([EdgeBlock(16, 16), EdgeBlock(16, 16)]), up=tree(conv=conv1(16, 16))),
                tree(blocks=parts([EdgeBlock(16, 12), EdgeBlock(12, 12)])),
            ]
        ),
        norm=torch.nn.GroupNorm(GROUPS, 12, eps=1e-5),
        conv_out=conv3(12, 48),
    )
    coder = randomise(tree(encoder=encoder, decoder=decoder, quant=conv1(10, 10), post_quant=conv1(5, 5)))
    x = encoder.conv_in(F.pixel_unshuffle(image, 4))
    x = encoder.levels[0].down(run(encoder.levels[0].blocks, x))
    x = run(encoder.levels[1].blocks, x)
    x = encoder.middle.block2(encoder.middle.block1(x))
    moments = coder.quant(encoder.conv_out(F.relu(encoder.norm(x))))
    latent = torch.randn(2, 5, 4, 8)
    x = decoder.conv_in(coder.post_quant(latent))
    x = decoder.middle.block2(decoder.middle.block1(x))
    x = double(decoder.levels[0].up.conv(run(decoder.levels[0].blocks, x)))
    x = run(decoder.levels[1].blocks, x)
    decoded = F.pixel_shuffle(decoder.conv_out(F.relu(decoder.norm(x))), 4)
    out.update(weights("autoencoder", coder, []))
    out.update({"moments": moments, "latent": latent, "decoded": decoded})

    # Guidance: patch 2, branches of 8, trunk of 8, 12 and 16 channels, control of 20, skips of 12 and 20, 2 classes.
    branch = lambda planes, width: tree(convs=parts([conv3(4 * planes, width // 2, 2), conv3(width // 2, width, 2)]))
    semantic = tree(fine=conv1(10, 4), coarse=conv1(12, 4), norm=torch.nn.GroupNorm(GROUPS, 8, eps=1e-5))
    gates = tree(squeeze=torch.nn.Linear(8, 2), excite=torch.nn.Linear(2, 8), spatial=torch.nn.Conv2d(2, 1, 7, padding=3))
    fusion = tree(
        picture=branch(3, 8),
        sketch=branch(1, 4),
        semantic=semantic,
        mix=conv1(20, 8),
        norm=torch.nn.GroupNorm(GROUPS, 8, eps=1e-5),
        gates=gates,
    )
    trunk = parts(
        [
            tree(block=EdgeBlock(8, 8)),
            tree(down=Fold(8, 12), block=EdgeBlock(12, 12)),
            tree(down=Fold(12, 16), block=EdgeBlock(16, 16)),
        ]
    )
    scales = tree(
        laterals=parts([conv1(8, 8), conv1(12, 8), conv1(16, 8)]),
        downs=parts([Fold(8, 8), Fold(8, 8)]),
        weights=torch.nn.ParameterList([torch.empty(1), torch.empty(1)]),
    )
    outputs = (12, 20, 20)
    guide = randomise(
        tree(
            fusion=fusion,
            trunk=trunk,
            multi_scale=scales,
            direct=parts([conv1(16, width) for width in outputs]),
            fused=parts([conv1(8, width) for width in outputs]),
            classes=torch.nn.Embedding(3, 24),
        )
    )
    see = lambda part, planes: run(
        [lambda x, conv=conv: F.relu(conv(x)) for conv in part.convs], F.pixel_unshuffle(planes, 2)
    )
    coarse = F.interpolate(seen[2], size=seen[1].shape[2:], mode="bilinear", align_corners=False)
    meaning = F.relu(semantic.norm(torch.cat([semantic.fine(seen[1]), semantic.coarse(coarse)], 1)))
    views = torch.cat([see(fusion.picture, image), see(fusion.sketch, sketch), meaning], 1)
    mixed = F.relu(fusion.norm(fusion.mix(views)))
    channel = torch.sigmoid(gates.excite(F.relu(gates.squeeze(mixed.mean((2, 3))))))[:, :, None, None]
    spatial = torch.sigmoid(gates.spatial(torch.cat([mixed.mean(1, keepdim=True), mixed.amax(1, keepdim=True)], 1)))
    levels, x = [], mixed + mixed * channel * spatial
    for level in trunk:
        x = level.block(level.down(x) if hasattr(level, "down") else x)
        levels.append(x)
    fused = F.relu(scales.laterals[0](levels[0]))
    for lateral, down, weight, level in zip(scales.laterals[1:], scales.downs, scales.weights, levels[1:]):
        fused = F.relu(lateral(level)) + weight * F.relu(down(fused))
    controls = [direct(x) + late(fused) for direct, late in zip(guide.direct, guide.fused)]
    out.update(weights("guidance", guide, []))
    out.update({f"control.{k}": control for k, control in enumerate(controls)})
    out["class_embedding"] = guide.classes(torch.tensor([2, 0]))

    # Repair: 8, 12, 16 and 20 channels at strides 4 to 32, 4 in the bottleneck, two blocks each.
    repair = randomise(
        tree(
            down=parts([Fold(6, 12), Fold(22, 16), Fold(28, 20)]),
            narrow=conv1(20, 4),
            coarsest=parts([EdgeBlock(4, 20), EdgeBlock(20, 20)]),
            levels=parts(
                [
                    tree(up=Grow(wide, width), blocks=parts([EdgeBlock(width, width) for _ in range(2)]), output=conv1(width, features))
                    for wide, width, features in [(20, 16, 12), (16, 12, 10), (12, 8, 6)]
                ]
            ),
        )
    )
    fold = lambda k, x: F.relu(repair.down[k](x))
    x = fold(2, torch.cat([fold(1, torch.cat([fold(0, seen[0]), seen[1]], 1)), seen[2]], 1))
    x, repaired = run(repair.coarsest, repair.narrow(x)), []
    for level in repair.levels:
        x = run(level.blocks, level.up(x))
        repaired.insert(0, level.output(F.relu(x)))
    out.update(weights("repair", repair, []))
    out.update({f"repaired.{k}": stage for k, stage in enumerate(repaired)})

    # Refine head: 8, 12 and 16 channels at strides 4, 8 and 16, one block each, 5 latent channels.
    refine = randomise(
        tree(
            pixels=conv1(48, 8),
            latents=conv1(10, 12),
            features=parts([conv1(12, 8), conv1(20, 12), conv1(24, 16)]),
            blocks=parts([parts([EdgeBlock(width, width)]) for width in (8, 12, 16)]),
            up=parts([Grow(12, 8), Grow(16, 12)]),
            output=conv1(8, 1),
        )
    )
    latents = torch.randn(2, 5, 4, 8), torch.randn(2, 5, 4, 8)
    out.update({"latent.seen": latents[0], "latent.normal": latents[1]})
    pair = lambda a, b: torch.cat([a, (a - b).abs()], 1)
    stage = lambda k: refine.features[k](pair(seen[k], redrawn[k]))
    x = run(refine.blocks[2], stage(2))
    x = run(refine.blocks[1], refine.up[1](x) + stage(1) + refine.latents(pair(*latents)))
    x = run(refine.blocks[0], refine.up[0](x) + stage(0) + refine.pixels(F.pixel_unshuffle(image, 4)))
    out.update(weights("refine", refine, []))
    out["logits"] = refine.output(F.relu(x))
    save("edge", out)


def backbone():
    """EfficientNet-Lite0 of timm with the weights of configs/backbone, which are f16 and have BatchNorm folded in."""
    ours = load_file(os.path.join(HERE, "../../../configs/backbone/efficientnet_lite0.f16.safetensors"))
    model = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3)).eval()
    names = ["stem"]
    for index in range(11):
        names += [f"blocks.{index}.{part}" for part in ("expand", "depthwise", "project") if index or part != "expand"]
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    # timm keeps the blocks of stride 32 that we leave away: the lists are longer than ours.
    for name, convolution, norm in zip(names, convolutions, norms):
        convolution.weight.copy_(ours.pop(f"{name}.weight").float())
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.weight.fill_(math.sqrt(1 + norm.eps))
        norm.bias.copy_(ours.pop(f"{name}.bias").float())
    assert not ours, sorted(ours)
    image = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(7)) * 2 - 1
    # timm takes (byte - 127) / 128; we take byte / 127.5 - 1.
    stages = model((image + 1) * 127.5 / 128 - 127 / 128)
    save("backbone", {"image": image, **{f"stage.{k}": stage for k, stage in enumerate(stages)}})


blocks()
autoencoder()
predict = denoiser()
schedules()
samplers(predict)
scores()
edge_networks()
backbone()
stable_diffusion()
print(f"{total:>9} bytes in all")
assert total < LIMIT, f"fixtures must stay under {LIMIT} bytes"
