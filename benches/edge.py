#!/usr/bin/env python3
"""The frame of an edge bundle in PyTorch and ONNX Runtime: the rival of `trainer bench --bundle`, with the same weights.

    pip install torch==2.15.0 safetensors==0.8.0 numpy==2.4.6 pillow onnx onnxscript onnxruntime
    python3 benches/edge.py --bundle configs/bundles/demo [--device cuda] [--steps 2] [--batch 1] [--threads 2] [--train]

First the golden picture of the bundle: its map must come out as `trainer` stored it, or nothing is timed. Then the whole
frame (upload, all networks, map, smoothing, score, read-back) in every form that PyTorch has, and in ONNX Runtime on the CPU:
one JSON object a line, the fastest last. --train also times the training step of the denoiser's stage as `trainer bench --train`
does: batch and rates of configs/train/PROFILE.toml, upload, frozen networks, loss, gradients, their norm clipped, AdamW, moving
average; f32.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
import tomllib

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

BLOCKS = [(3, 1), (3, 2), (3, 1), (5, 2), (5, 1), (3, 2), (3, 1), (3, 1), (5, 1), (5, 1), (5, 1)]
STAGE_ENDS = (2, 4, 10)
GROUPS, EPSILON = 8, 1e-5


class Frame(torch.nn.Module):
    """Picture `[b, 3, h, w]` in -1 to 1 to map `[b, h, w]`, score `[b]` and reconstruction."""

    def __init__(self, bundle, steps, class_index):
        super().__init__()
        self.manifest = json.load(open(os.path.join(bundle, "manifest.json")))
        self.class_index = class_index
        self.model = self.manifest["model"]
        self.names = {}
        for name, value in load_file(os.path.join(bundle, "weights.safetensors")).items():
            self.names[name] = "w_" + name.replace(".", "_")
            self.register_buffer(self.names[name], value.float())
        levels = self.model["sampler"]["levels"]
        curve = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = [min(1 - curve((t + 1) / levels) / curve(t / levels), 0.999) for t in range(levels)]
        self.alpha_bar = np.cumprod([1 - beta for beta in betas]).tolist()
        self.grid = [math.floor(levels - k * levels / steps + 0.5) - 1 for k in range(steps)]
        half = self.model["denoiser"]["channels"][0] // 2
        for t in self.grid:
            angles = [t * math.exp(-math.log(10_000) * i / half) for i in range(half)]
            self.register_buffer(f"waves_{t}", torch.tensor([[*map(math.cos, angles), *map(math.sin, angles)]]).float())
        gauss = torch.exp(-0.5 * torch.arange(-3.0, 4.0) ** 2)
        self.register_buffer("gauss", gauss / gauss.sum())
        self.register_buffer("sobel", torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]))
        self.register_buffer("luma", torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1))
        sigma = self.manifest["map"]["sigma"]
        radius = int(4 * sigma + 0.5)
        taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
        self.register_buffer("smoothing", taps / taps.sum())
        for side in ("width", "height"):
            size = self.manifest["preprocess"][side]
            places = [k % (2 * size) for k in range(-radius, size + radius)]
            mirrored = torch.tensor([k if k < size else 2 * size - 1 - k for k in places])
            self.register_buffer(f"mirrored_{side}", mirrored)

    def w(self, name):
        return getattr(self, self.names[name])

    def has(self, name):
        return name in self.names

    def conv(self, name, x, stride=1, padding=0):
        return F.conv2d(x, self.w(f"{name}.weight"), self.w(f"{name}.bias"), stride, padding)

    def linear(self, name, x):
        return x @ self.w(f"{name}.weight") + self.w(f"{name}.bias")

    def norm(self, name, x):
        return F.group_norm(x, GROUPS, self.w(f"{name}.gamma"), self.w(f"{name}.beta"), EPSILON)

    def block(self, name, x, embedding=None):
        name += ".Edge"
        weight = self.w(f"{name}.depthwise.weight")
        inner = F.conv2d(x, weight, self.w(f"{name}.depthwise.bias"), 1, 1, 1, weight.shape[0])
        inner = self.conv(f"{name}.expand", self.norm(f"{name}.norm", inner))
        if embedding is not None:
            inner = inner + self.linear(f"{name}.embedding", F.relu(embedding))[:, :, None, None]
        inner = self.conv(f"{name}.project", F.relu(inner))
        return inner + (self.conv(f"{name}.shortcut", x) if self.has(f"{name}.shortcut.weight") else x)

    def blocks(self, name, x):
        k = 0
        while self.has(f"{name}.{k}.Edge.norm.gamma"):
            x = self.block(f"{name}.{k}", x)
            k += 1
        return x

    def fold(self, name, x):
        return self.conv(f"{name}.conv", F.pixel_unshuffle(x, 2))

    def grow(self, name, x):
        return F.interpolate(self.conv(f"{name}.conv", x), scale_factor=2, mode="nearest")

    def features(self, image):
        relu6 = lambda x: torch.clamp(x, 0, 6)
        name = "features.EfficientnetLite0"
        x = image * (127.5 / 128) + 0.5 / 128
        x = relu6(self.conv(f"{name}.stem", F.pad(x, (0, 1, 0, 1)), 2))
        stages = []
        for k, (kernel, stride) in enumerate(BLOCKS):
            here, inner = f"{name}.blocks.{k}", x
            if self.has(f"{here}.expand.weight"):
                inner = relu6(self.conv(f"{here}.expand", inner))
            weight = self.w(f"{here}.depthwise.weight")
            before, after = (kernel // 2 - 1, kernel // 2) if stride == 2 else (kernel // 2, kernel // 2)
            inner = F.pad(inner, (before, after, before, after))
            inner = relu6(F.conv2d(inner, weight, self.w(f"{here}.depthwise.bias"), stride, 0, 1, weight.shape[0]))
            inner = self.conv(f"{here}.project", inner)
            x = inner + x if inner.shape == x.shape else inner
            if k in STAGE_ENDS:
                stages.append(x)
        return stages

    def encode(self, image):
        name = "autoencoder.encoder"
        x, k = self.conv(f"{name}.conv_in", F.pixel_unshuffle(image, self.model["autoencoder"]["patch"]), 1, 1), 0
        while self.has(f"{name}.levels.{k}.blocks.0.Edge.norm.gamma"):
            x = self.blocks(f"{name}.levels.{k}.blocks", x)
            if self.has(f"{name}.levels.{k}.down.conv.weight"):
                x = self.fold(f"{name}.levels.{k}.down", x)
            k += 1
        x = self.block(f"{name}.middle.block2", self.block(f"{name}.middle.block1", x))
        moments = self.conv("autoencoder.quant", self.conv(f"{name}.conv_out", F.relu(self.norm(f"{name}.norm", x)), 1, 1))
        return moments.chunk(2, 1)[0] * self.model["latent_scale"]

    def decode(self, latent):
        name = "autoencoder.decoder"
        x = self.conv("autoencoder.post_quant", latent / self.model["latent_scale"])
        x, k = self.conv(f"{name}.conv_in", x, 1, 1), 0
        x = self.block(f"{name}.middle.block2", self.block(f"{name}.middle.block1", x))
        while self.has(f"{name}.levels.{k}.blocks.0.Edge.norm.gamma"):
            x = self.blocks(f"{name}.levels.{k}.blocks", x)
            if self.has(f"{name}.levels.{k}.up.conv.weight"):
                x = self.grow(f"{name}.levels.{k}.up", x)
            k += 1
        x = self.conv(f"{name}.conv_out", F.relu(self.norm(f"{name}.norm", x)), 1, 1)
        return F.pixel_shuffle(x, self.model["autoencoder"]["patch"])

    def sketch(self, image):
        filtered = lambda x, kernel: F.conv2d(
            F.pad(x, (kernel.shape[1] // 2,) * 2 + (kernel.shape[0] // 2,) * 2, mode="replicate"), kernel[None, None]
        )
        grey = (image * self.luma).sum(1, keepdim=True) * 0.5 + 0.5
        smooth = filtered(filtered(grey, self.gauss[:, None]), self.gauss[None])
        magnitude = (filtered(smooth, self.sobel) ** 2 + filtered(smooth, self.sobel.T) ** 2 + 1e-8).sqrt()
        return torch.tanh(magnitude / (magnitude.mean((2, 3), keepdim=True) * 3 + 1e-3))

    def branch(self, name, planes):
        x, k = F.pixel_unshuffle(planes, self.model["guidance"]["patch"]), 0
        while self.has(f"{name}.convs.{k}.weight"):
            x = F.relu(self.conv(f"{name}.convs.{k}", x, 2, 1))
            k += 1
        return x

    def guide(self, image, stages):
        name = "guidance.fusion"
        coarse = F.interpolate(stages[2], size=stages[1].shape[2:], mode="bilinear", align_corners=False)
        meaning = [self.conv(f"{name}.semantic.fine", stages[1]), self.conv(f"{name}.semantic.coarse", coarse)]
        meaning = F.relu(self.norm(f"{name}.semantic.norm", torch.cat(meaning, 1)))
        views = [self.branch(f"{name}.picture", image), self.branch(f"{name}.sketch", self.sketch(image)), meaning]
        x = F.relu(self.norm(f"{name}.norm", self.conv(f"{name}.mix", torch.cat(views, 1))))
        squeezed = F.relu(self.linear(f"{name}.gates.squeeze", x.mean((2, 3))))
        channel = torch.sigmoid(self.linear(f"{name}.gates.excite", squeezed))[:, :, None, None]
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        x = x + x * channel * torch.sigmoid(self.conv(f"{name}.gates.spatial", summary, 1, 3))
        fused, level = None, 0
        while self.has(f"guidance.trunk.{level}.block.Edge.norm.gamma"):
            if level:
                x = self.fold(f"guidance.trunk.{level}.down", x)
            x = self.block(f"guidance.trunk.{level}.block", x)
            lateral = F.relu(self.conv(f"guidance.multi_scale.laterals.{level}", x))
            if level:
                carried = F.relu(self.fold(f"guidance.multi_scale.downs.{level - 1}", fused))
                lateral = lateral + carried * self.w(f"guidance.multi_scale.weights.{level - 1}")
            fused, level = lateral, level + 1
        count = sum(self.has(f"guidance.direct.{k}.weight") for k in range(99))
        return [self.conv(f"guidance.direct.{k}", x) + self.conv(f"guidance.fused.{k}", fused) for k in range(count)]

    def unit(self, name, x, embedding):
        x = self.block(f"{name}.block", x, embedding)
        if not self.has(f"{name}.attention.query.weight"):
            return x
        batch, channels, height, width = x.shape
        heads = self.model["denoiser"]["heads"]
        tokens = lambda x: x.reshape(batch, heads, channels // heads, height * width).transpose(2, 3)
        normed = self.norm(f"{name}.attention.norm", x)
        query, key, value = (tokens(self.conv(f"{name}.attention.{part}", normed)) for part in ("query", "key", "value"))
        attended = F.scaled_dot_product_attention(query, key, value).transpose(2, 3).reshape(x.shape)
        return x + self.conv(f"{name}.attention.output", attended)

    def denoise(self, x, t, controls):
        return self.denoise_by(x, getattr(self, f"waves_{t}"), controls)

    def denoise_by(self, x, waves, controls):
        embedding = F.relu(self.linear("denoiser.time.linear1", waves))
        embedding = self.linear("denoiser.time.linear2", embedding)
        embedding = embedding + self.w("guidance.classes.weight")[self.class_index]
        x = self.conv("denoiser.conv_in", x, 1, 1)
        skips, level = [x], 0
        while self.has(f"denoiser.down.{level}.units.0.block.Edge.norm.gamma"):
            for k in range(self.model["denoiser"]["blocks"]):
                x = self.unit(f"denoiser.down.{level}.units.{k}", x, embedding)
                skips.append(x)
            if self.has(f"denoiser.down.{level}.down.conv.weight"):
                x = self.fold(f"denoiser.down.{level}.down", x)
                skips.append(x)
            level += 1
        x = self.block("denoiser.middle_out", self.unit("denoiser.middle_in", x, embedding), embedding) + controls[-1]
        first = len(skips) - (len(controls) - 1)
        skips[first:] = [skip + control for skip, control in zip(skips[first:], controls)]
        for level in range(len(self.model["denoiser"]["channels"])):
            for k in range(self.model["denoiser"]["blocks"] + 1):
                x = self.unit(f"denoiser.up.{level}.units.{k}", torch.cat([x, skips.pop()], 1), embedding)
            if self.has(f"denoiser.up.{level}.up.conv.weight"):
                x = self.grow(f"denoiser.up.{level}.up", x)
        return self.conv("denoiser.conv_out", F.relu(self.norm("denoiser.norm", x)), 1, 1)

    def restore(self, x, controls):
        sigma = lambda t: math.sqrt(1 - self.alpha_bar[t])
        for k, t in enumerate(self.grid):
            prediction = self.denoise(x, t, controls)
            x = x - prediction * sigma(t)
            if k + 1 < len(self.grid):
                x = x + prediction * sigma(self.grid[k + 1])
        return x

    def repaired(self, seen):
        fold = lambda k, x: F.relu(self.fold(f"repair.network.down.{k}", x))
        x = fold(2, torch.cat([fold(1, torch.cat([fold(0, seen[0]), seen[1]], 1)), seen[2]], 1))
        x, out = self.blocks("repair.network.coarsest", self.conv("repair.network.narrow", x)), []
        for level in range(3):
            x = self.grow(f"repair.network.levels.{level}.up", x)
            x = self.blocks(f"repair.network.levels.{level}.blocks", x)
            out.insert(0, self.conv(f"repair.network.levels.{level}.output", F.relu(x)))
        return out

    def refined(self, image, latents, seen, normal):
        pair = lambda a, b: torch.cat([a, (a - b).abs()], 1)
        stage = lambda k: self.conv(f"refine.features.{k}", pair(seen[k], normal[k]))
        x = self.blocks("refine.blocks.2", stage(2))
        x = self.grow("refine.up.1", x) + stage(1) + self.conv("refine.latents", pair(*latents))
        x = self.blocks("refine.blocks.1", x)
        x = self.grow("refine.up.0", x) + stage(0) + self.conv("refine.pixels", F.pixel_unshuffle(image, 4))
        return torch.sigmoid(self.conv("refine.output", F.relu(self.blocks("refine.blocks.0", x))))

    def distance(self, stages, size):
        counts = self.model["prototypes"]["border_counts"]
        pool = lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=counts)
        coarse = F.interpolate(pool(stages[2]), size=stages[1].shape[2:], mode="bilinear", align_corners=False)
        found = torch.cat([pool(stages[1]), coarse], 1).permute(0, 2, 3, 1).float()
        batch, height, width, channels = found.shape
        rows = self.w("prototypes.rows")
        groups, near = range(rows.shape[0]) if self.class_index == 0 else [self.class_index - 1], []
        for group in groups:
            center, factor = self.w("prototypes.metric.center")[group], self.w("prototypes.metric.factor")[group]
            place = (found.reshape(-1, channels) - center.float()) @ factor.float()
            here = rows[group].float()
            square = (place**2).sum(1) + ((here**2).sum(1)[None] - 2 * place @ here.T).amin(1)
            near.append(square.clamp_min(0).sqrt())
        return self.resized(torch.stack(near).amin(0).reshape(batch, 1, height, width).to(stages[1].dtype), size)

    def resized(self, plane, size):
        return F.interpolate(plane, size=size, mode="bilinear", align_corners=True)

    def smooth(self, plane):
        taps = self.smoothing.to(plane.dtype)
        plane = F.conv2d(plane.index_select(3, self.mirrored_width), taps.view(1, 1, 1, -1))
        return F.conv2d(plane.index_select(2, self.mirrored_height), taps.view(1, 1, -1, 1))

    def forward(self, image):
        size, spec = image.shape[2:], self.manifest["map"]
        stages = self.features(image)
        seen_latent = self.encode(image)
        latent = self.restore(seen_latent, self.guide(image, stages))
        reconstruction = self.decode(latent)
        row = lambda part, k: self.w(f"repair.scale.{part}.{k}").view(1, -1, 1, 1)
        seen = [(stage - row("centers", k)) * row("factors", k) for k, stage in enumerate(stages)]
        normal = self.repaired(seen)
        cosine = lambda a, b: 1 - (a * b).sum(1, keepdim=True) / (
            ((a * a).sum(1, keepdim=True).sqrt() * (b * b).sum(1, keepdim=True).sqrt()).clamp_min(1e-8)
        )
        features = sum(self.resized(cosine(a, b), size) for a, b in zip(seen, normal))
        refine = self.resized(self.refined(image, (seen_latent, latent), seen, normal), size)
        prototypes = self.distance(stages, size)
        weights = spec["weights"]
        above = lambda plane, floor: (plane - floor).clamp_min(0)
        plane = above(features, weights["features_floor"]) * weights["features"]
        plane = plane + (refine * weights["refine"]) ** weights["refine_power"]
        plane = plane + above(prototypes, weights["prototypes_floor"]) * weights["prototypes"]
        plane = self.smooth(plane.float() if plane.device.type == "cpu" else plane)
        count = max(1, round(size[0] * size[1] * spec["pooling"]["fraction"]))
        return plane[:, 0], plane.flatten(1).topk(count).values.mean(1), reconstruction


class Step:
    """A training step of the denoiser's stage: what `trainer fit` does with a batch, with one that was drawn before."""

    def __init__(self, bundle, device, compiled):
        self.frame = frame = Frame(bundle, 1, 0).to(device)
        self.device, manifest = device, frame.manifest
        with open(f"configs/train/{manifest['profile']}.toml", "rb") as file:
            config = tomllib.load(file)
        self.size, self.decay = config["denoiser_batch"], config["ema_decay"]
        self.learned = []
        for name, held in frame.names.items():
            if name.startswith(("denoiser.", "guidance.")):
                value = torch.nn.Parameter(getattr(frame, held))
                delattr(frame, held)
                frame.register_parameter(held, value)
                self.learned.append(value)
        self.average = [value.detach().clone() for value in self.learned]
        self.optimizer = torch.optim.AdamW(self.learned, 1e-5, weight_decay=config["weight_decay"], fused=device != "cpu")
        width, height = manifest["preprocess"]["width"], manifest["preprocess"]["height"]
        levels, count = len(frame.alpha_bar), self.size
        draw = torch.rand(count)
        at = torch.where(draw < 0.5, levels - 1, ((draw - 0.5) * 2 * (levels - 1)).long())
        alpha_bar = torch.tensor(frame.alpha_bar, dtype=torch.float32)
        column = lambda values: values.float().view(-1, 1, 1, 1)
        half = frame.model["denoiser"]["channels"][0] // 2
        angles = at[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)[None]
        latent = (count, frame.model["autoencoder"]["latent_channels"], height // 8, width // 8)
        self.last_sigma = math.sqrt(1 - frame.alpha_bar[-1])
        self.host = {
            "clean": torch.rand(count, 3, height, width) * 2 - 1,
            "seen": torch.rand(count, 3, height, width) * 2 - 1,
            "noise": torch.randn(latent),
            "source": torch.randperm(count),
            "swapped": column(torch.rand(count) < 0.1),
            "mask": (torch.rand(count, 1, *latent[2:]) < 0.35).float(),
            "kept": column((1 - alpha_bar[at].sqrt()) / (1 - alpha_bar[at]).sqrt()),
            "which": column(torch.rand(count) < 0.3),
            "sigma": column((1 - alpha_bar[at]).sqrt()),
            "guided": column(torch.rand(count) >= 0.15),
            "waves": torch.cat([angles.cos(), angles.sin()], 1),
        }
        self.loss = torch.compile(self.plain_loss, mode=compiled) if compiled else self.plain_loss

    def plain_loss(self, clean, seen, noise, source, swapped, mask, kept, which, sigma, guided, waves):
        frame = self.frame
        with torch.no_grad():
            normal, observed = frame.encode(clean), frame.encode(seen)
            noise = noise + (normal[source] - noise) * swapped
            by_latent = (noise - normal * kept) * mask
            by_picture = (observed - normal) / self.last_sigma
            deviation = by_picture + (by_latent - by_picture) * which
            latent = normal + deviation * sigma
            stages = frame.features(seen)
        controls = [control * guided for control in frame.guide(seen, stages)]
        predicted = frame.denoise_by(latent, waves, controls)
        weight = (deviation.abs().mean(1, keepdim=True) > 0.05).float() * 4 + 1
        return ((predicted - deviation).square() * weight).mean() / weight.mean()

    def __call__(self):
        batch = {name: value.to(self.device) for name, value in self.host.items()}
        with torch.enable_grad():
            loss = self.loss(**batch)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learned, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.learned, 1 - self.decay)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return loss


def check(bundle, device):
    """The golden pictures must give the maps that are stored with them."""
    worst = 0.0
    manifest = json.load(open(os.path.join(bundle, "manifest.json")))
    for golden in manifest["golden"]:
        index = manifest["classes"].index(golden["class"]) + 1 if golden["class"] else 0
        frame = Frame(bundle, golden["steps"], index).to(device)
        picture = np.asarray(Image.open(os.path.join(bundle, golden["picture"])).convert("RGB"), np.float32)
        image = torch.from_numpy(picture / 127.5 - 1).permute(2, 0, 1)[None].to(device)
        found = frame(image)[0][0].float().cpu()
        expected = load_file(os.path.join(bundle, golden["map"]))["map"]
        worst = max(worst, float((found - expected).abs().max()))
        if not worst <= golden["tolerance"]:
            sys.exit(f"{golden['picture']}: the map differs by {worst}: this is not the same network")
    return worst


def main():
    parse = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parse.add_argument("--bundle", required=True)
    parse.add_argument("--device", default="cpu")
    parse.add_argument("--steps", type=int, default=2)
    parse.add_argument("--batch", type=int, default=1)
    parse.add_argument("--threads", type=int, default=os.cpu_count())
    parse.add_argument("--seconds", type=float, default=8)
    parse.add_argument("--train", action="store_true", help="also a training step of the denoiser's stage")
    parse.add_argument("--only", default="", help="time only forms whose name has these words, as 'float16, compiled'")
    args = parse.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True
    print(json.dumps({"what": "golden maps", "worst": check(args.bundle, args.device)}), flush=True)

    spec = json.load(open(os.path.join(args.bundle, "manifest.json")))["preprocess"]
    host = torch.rand(args.batch, 3, spec["height"], spec["width"]) * 2 - 1
    times, steps = [], []

    def measure(what, once, kept, **more):
        once(), once()
        taken, started = [], time.perf_counter()
        while len(taken) < 10 or time.perf_counter() - started < args.seconds:
            before = time.perf_counter()
            once()
            taken.append(time.perf_counter() - before)
        row = {"what": what, "ms": statistics.median(taken) * 1e3, "runs": len(taken), **more}
        kept.append(row)
        print(json.dumps(row), flush=True)

    def attempt(what, make, kept=times, **more):
        if args.only not in what:
            return
        try:
            measure(what, make(), kept, **more)
        except Exception as error:  # a form that this machine lacks (a compiler, a kernel) is a row that says so
            print(json.dumps({"what": what, "error": str(error).strip().split("\n")[0][:200]}), flush=True)

    def form(dtype, channels_last, compiled):
        frame = Frame(args.bundle, args.steps, 0).to(args.device, dtype)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            for name, value in list(frame.named_buffers()):
                if value.dim() == 4:
                    setattr(frame, name, value.to(memory_format=layout))
        # With CUDA graphs. "max-autotune" tries thousands of kernels first and was not waited for.
        mode = "reduce-overhead" if args.device != "cpu" else "default"
        run = torch.compile(frame, mode=mode) if compiled else frame

        def once():
            plane, score, picture = run(host.to(args.device, dtype).contiguous(memory_format=layout))
            return plane.cpu(), score.cpu(), picture.cpu()

        return once

    def recorded(dtype):
        frame = Frame(args.bundle, args.steps, 0).to(args.device, dtype)
        image = torch.zeros_like(host, device=args.device, dtype=dtype)
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            for _ in range(3):
                frame(image)
        side.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = frame(image)

        def once():
            image.copy_(host)
            graph.replay()
            return [part.cpu() for part in found]

        return once

    def exported():
        import onnxruntime

        frame = Frame(args.bundle, args.steps, 0)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "frame.onnx")
            torch.onnx.export(frame, (host,), path, dynamo=True, external_data=False, verbose=False)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = args.threads
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name, values = session.get_inputs()[0].name, host.numpy()
        return lambda: session.run(None, {name: values})

    for dtype in (torch.float32,) if args.device == "cpu" else (torch.float32, torch.float16):
        for compiled in (False, True):
            for channels_last in (False, True):
                parts = [str(dtype).split(".")[1], "compiled" if compiled else "eager"] + ["channels last"] * channels_last
                attempt("PyTorch " + ", ".join(parts), lambda: form(dtype, channels_last, compiled))
        if args.device != "cpu":
            attempt(f"PyTorch {str(dtype).split('.')[1]}, eager, one CUDA graph", lambda: recorded(dtype))
    if args.device == "cpu":
        attempt("ONNX Runtime float32", exported)
    if args.train:
        # TF32, as PyTorch's own advice for speed is, and as cuDNN's convolutions and dsad's are.
        torch.set_float32_matmul_precision("high")
        forms = {"eager": None, "compiled": "default"}
        if args.device != "cpu":
            forms["compiled, CUDA graphs"] = "reduce-overhead"
        for kind, compiled in forms.items():
            step = Step(args.bundle, args.device, compiled)
            attempt(f"PyTorch float32, {kind}, training step: denoiser", lambda: step, steps, pictures=step.size)
    fastest = min(times, key=lambda row: row["ms"], default={})
    if steps:
        fastest["training"] = {"denoiser": min(steps, key=lambda row: row["ms"])}
    print(json.dumps({"steps": args.steps, "batch": args.batch, "device": args.device, "threads": args.threads, **fastest}))


main()
