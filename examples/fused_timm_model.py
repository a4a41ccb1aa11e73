"""Train a fused timm model in a plain PyTorch loop, without lgfast's trainer.

    python examples/fused_timm_model.py [--steps 200]

The model is a small ViT, the data scikit-learn's digits. Three lines are lgfast's: `fuse`, `FlatAdamW` and `unfuse`.
"""

import argparse

import timm
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import lgfast

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--steps", type=int, default=200)
steps = parser.parse_args().steps

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images / 8 - 1, dtype=torch.float32, device=device)[:, None]  # [1797, 1, 8, 8]
labels = torch.tensor(digits.target, device=device)
train, test = slice(0, 1500), slice(1500, None)

model = timm.create_model(
    "vit_tiny_patch16_224", num_classes=10, in_chans=1, img_size=8, patch_size=2, embed_dim=96, depth=4, num_heads=3
).to(device)
print(lgfast.fuse(model))  # says which attention modules now run lgfast's operation, and why others do not
optimizer = lgfast.FlatAdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

for step in range(1, steps + 1):
    batch = torch.randint(0, 1500, (64,), device=device)
    loss = cross_entropy(model(images[train][batch]), labels[train][batch])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if step % max(1, steps // 5) == 0:
        print(f"step {step}: loss {loss.item():.3f}")

lgfast.unfuse(model)  # a plain timm model again: its weights load without lgfast
model.eval()
with torch.inference_mode():
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean()
print(f"test accuracy {100 * accuracy.item():.1f} %")
