"""Distil DINOv2 ViT-S/14 into ReferenceNet on H&E tiles of about 1 um/px: the teacher's targets, then the training.

Needs in --work: tiles.npy and tiles.csv (cut_tiles.py), dinov2.safetensors and efficientnet_lite0.pth (the data
folder's weights/SOURCE.txt says how to get both). Writes teacher.npy, once, and distilled.safetensors.
"""

import argparse
import csv
import io
import math
import time
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from pathovit.encoders.reference import MEAN, STD, TILE_PX, ReferenceNet

SEED = 0
TRAIN_PATIENTS = {  # the others are held out: no step of the training sees them
    *("PDAC-tru-cut", "lung-squamous-cell-carcinoma"),  # malignant
    *("metaplasia", "crohn-colonoscopic-biopsy", "gallbladder-adenomyoma"),
}
TEACHER_PX = 224
TEACHER_BLOCKS = (5, 8, 11)  # middle blocks tell tumour apart better than the last one alone (validation AUROC)
TARGET_DIM = 384  # principal components of the three blocks' outputs
BATCH = 64
# Stains (haematoxylin, eosin, DAB) in optical density. Source: Ruifrok & Johnston, Anal Quant Cytol Histol 2001.
OD_FROM_HED = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])


def read_pcam(data: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """PCam tiles uint8 (N, 96, 96, 3) and labels per split; train has no image of test, validation or twice."""
    tables = {split: data / "pcam" / f"{split}_labels.csv" for split in ("test", "validation", "train")}
    seen: set[bytes] = set()
    splits = {}
    for split, table in tables.items():
        tiles, labels = [], []
        for path in [table, data / "pcam_more" / "labels.csv"] if split == "train" else [table]:
            for row in csv.DictReader(path.read_text().splitlines()):
                tile = np.asarray(Image.open(path.parent / row["filename"].removeprefix("data/")).convert("RGB"))
                if split == "train" and tile.tobytes() in seen:
                    continue
                seen.add(tile.tobytes())
                tiles.append(tile)
                labels.append(int(row["label"]))
        splits[split] = np.stack(tiles), np.array(labels)
    return splits


def read_atlas(data: Path, work: Path) -> tuple[np.ndarray, np.ndarray, dict[str, dict[str, str]]]:
    """All atlas tiles uint8 (N, 96, 96, 3), the slide of each (N,), and the row of slides.csv for every slide."""
    slides = {row["file"]: row for row in csv.DictReader((data / "atlas" / "slides.csv").read_text().splitlines())}
    tile_slides = np.array([row["slide"] for row in csv.DictReader((work / "tiles.csv").read_text().splitlines())])
    return np.load(work / "tiles.npy", mmap_mode="r"), tile_slides, slides


def normalise(tiles: torch.Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> torch.Tensor:
    """float (B, 3, H, W) in [0, 1] to the encoder's input, channels last in memory."""
    tiles = (tiles - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    return tiles.contiguous(memory_format=torch.channels_last)


def to_float(tiles: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W, 3) to float (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(tiles)).permute(0, 3, 1, 2).float() / 255


def uniform(count: int, low: float, high: float, *shape: int) -> torch.Tensor:
    return torch.empty(count, *(shape or (1, 1, 1))).uniform_(low, high)


def augment(tiles: np.ndarray, strength: float = 1.0) -> torch.Tensor:
    """Every tile in another stain, light, focus, compression, size and turn: uint8 (B, H, W, 3) to normalised input."""
    x = to_float(np.stack([recompress(tile) if torch.rand(()) < 0.4 else tile for tile in tiles]))
    n = len(x)
    hed = -torch.log(x.clamp(min=1 / 256)).permute(0, 2, 3, 1) @ torch.linalg.inv(OD_FROM_HED)  # (B, H, W, 3)
    hed = hed * uniform(n, 1 - 0.25 * strength, 1 + 0.25 * strength, 1, 1, 3)
    hed = hed + uniform(n, -0.04 * strength, 0.04 * strength, 1, 1, 3)
    x = torch.exp(-(hed @ OD_FROM_HED)).permute(0, 3, 1, 2).clamp(0, 1)
    x = x ** uniform(n, 1 - 0.25 * strength, 1 + 0.25 * strength)  # gamma
    middle, grey = x.mean((1, 2, 3), keepdim=True), x.mean(1, keepdim=True)
    x = middle + (x - middle) * uniform(n, 1 - 0.25 * strength, 1 + 0.25 * strength)
    x = grey + (x - grey) * uniform(n, 1 - 0.3 * strength, 1 + 0.3 * strength)
    x = x * uniform(n, 1 - 0.08 * strength, 1 + 0.08 * strength, 3, 1, 1) + uniform(n, -0.1 * strength, 0.1 * strength)
    radius = torch.arange(-2, 3).float()
    sigma = uniform(n, 0.05, 1.0) * (uniform(n, 0, 1) < 0.4) + 0.05
    kernel = torch.exp(-(radius**2) / (2 * sigma.view(n, 1) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (B*3, 5)
    flat = F.pad(x, (2, 2, 2, 2), mode="reflect").reshape(1, 3 * n, TILE_PX + 4, TILE_PX + 4)
    flat = F.conv2d(F.conv2d(flat, kernel.view(-1, 1, 1, 5), groups=3 * n), kernel.view(-1, 1, 5, 1), groups=3 * n)
    x = flat.view(n, 3, TILE_PX, TILE_PX).clamp(0, 1)
    quarter = torch.randint(4, (n,)) * (math.pi / 2)
    angle = quarter + (torch.rand(n) - 0.5) * (math.pi / 2) * (torch.rand(n) < 0.5)
    scale, flip = torch.empty(n).uniform_(0.85, 1.15), torch.randint(2, (n,)) * 2 - 1
    cos, sin, none = torch.cos(angle) * scale, torch.sin(angle) * scale, torch.zeros(n)
    theta = torch.stack([torch.stack([cos * flip, -sin, none], 1), torch.stack([sin * flip, cos, none], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return normalise(F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False))


def recompress(tile: np.ndarray) -> np.ndarray:
    """The tile after another JPEG generation of random quality."""
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=int(torch.randint(40, 95, ())))
    return np.asarray(Image.open(buffer))


@torch.inference_mode()
def teach(tiles: np.ndarray, weights: Path) -> np.ndarray:
    """The teacher's class token and mean patch token after three of its blocks: float16 (N, 2304)."""
    teacher = timm.create_model("vit_small_patch14_dinov2", img_size=TEACHER_PX, num_classes=0)
    teacher.load_state_dict(checkpoint_filter_fn(load_file(weights), teacher))
    teacher.eval().to(torch.bfloat16)
    mean, std = timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD
    targets = []
    for first in range(0, len(tiles), 32):
        x = F.interpolate(to_float(tiles[first : first + 32]), size=TEACHER_PX, mode="bicubic").clamp(0, 1)
        stages = teacher.forward_intermediates(
            normalise(x, mean, std).bfloat16(), indices=list(TEACHER_BLOCKS), return_prefix_tokens=True,
            output_fmt="NLC", intermediates_only=True,
        )  # fmt: skip
        targets.append(torch.cat([part for tokens, cls in stages for part in (cls[:, 0], tokens.mean(1))], 1).half())
    return torch.cat(targets).numpy()


def whiten(targets: np.ndarray, dim: int = TARGET_DIM) -> torch.Tensor:
    """The first principal components of standardised targets, half whitened (strong ones still lead): (N, dim)."""
    x = torch.from_numpy(targets.astype(np.float32))
    u, s, _ = torch.linalg.svd((x - x.mean(0)) / x.std(0), full_matrices=False)
    targets = u[:, :dim] * s[:dim].sqrt()
    return targets / targets.std()


def load_imagenet(net: ReferenceNet, weights: Path) -> None:
    """EfficientNet-Lite0's ImageNet weights into the stem and the stages; the file has timm's order, not its names."""
    backbone = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = [name for name in backbone.state_dict() if not name.endswith("num_batches_tracked")]
    values = [v for k, v in torch.load(weights, weights_only=True).items() if not k.endswith("num_batches_tracked")]
    backbone.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    net.stem.load_state_dict(nn.Sequential(backbone.conv_stem, backbone.bn1).state_dict())
    net.stages.load_state_dict(backbone.blocks[: len(net.stages)].state_dict())


def pretrained_last(net: ReferenceNet) -> list[list[nn.Parameter]]:
    """Parameters made from scratch, then those from ImageNet, which take a smaller step."""
    old = {id(p) for part in (net.stem, net.stages) for p in part.parameters()}
    trained = [p for p in net.parameters() if p.requires_grad]
    return [[p for p in trained if id(p) not in old], [p for p in trained if id(p) in old]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=7)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    tiles, tile_slides, slides = read_atlas(args.data, args.work)
    is_train = np.array([slides[slide]["patient"] in TRAIN_PATIENTS for slide in tile_slides])
    tiles = np.concatenate([tiles[is_train], read_pcam(args.data)["train"][0]])
    if not (args.work / "teacher.npy").exists():
        np.save(args.work / "teacher.npy", teach(tiles, args.work / "dinov2.safetensors"))
    targets = whiten(np.load(args.work / "teacher.npy"))

    net = ReferenceNet(drop_path=0.05)
    load_imagenet(net, args.work / "efficientnet_lite0.pth")
    head = nn.Linear(net.norm.normalized_shape[0], TARGET_DIM)
    for part in (net.stem, net.stages[:2]):  # edges and colours: ImageNet's are good, and their gradients cost the most
        part.requires_grad_(False)
    scratch, imagenet = pretrained_last(net.train())
    rates = [2e-3, 1e-3]
    optimizer = torch.optim.AdamW(
        [{"params": [*scratch, *head.parameters()]}, {"params": imagenet}], lr=rates[0], weight_decay=0.02
    )
    steps = len(tiles) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, args.epochs * steps, pct_start=0.1)
    for epoch in range(args.epochs):
        started, total = time.monotonic(), 0.0
        for rows in torch.randperm(len(tiles))[: steps * BATCH].view(-1, BATCH):
            with torch.autocast("cpu", torch.bfloat16):
                features = net(augment(tiles[rows.numpy()], strength=0.7))
            loss = F.mse_loss(head(features.float()), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        print(f"epoch {epoch}: loss {total:.4f} (targets' variance 1), {time.monotonic() - started:.0f} s", flush=True)
        save_file(nn.Sequential(net, head).state_dict(), args.work / "distilled.safetensors")


if __name__ == "__main__":
    main()
