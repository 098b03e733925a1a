"""Deep Embedded Clustering on one page (Xie, Girshick, Farhadi, ICML 2016), in plain PyTorch.

Run it to cluster scikit-learn's digits. The constants are those of the paper and of its authors'
code; only the network is smaller and the training shorter, so that it takes about a minute.
"""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix
from torch import nn

WIDTHS = (64, 100, 100, 400, 10)  # the paper: d, 500, 500, 2000, 10, for every data set
SHARE = 0.1  # of the paper's 50,000 steps for each layer and 100,000 for fine-tuning
BATCH = 256


# -- What all phases use: layers, batches, SGD -----------------------------------------------------


def linear_layers(widths):
    """One linear layer between each two widths; weights from N(0, 0.01²), no biases yet."""
    layers = [nn.Linear(n_in, n_out) for n_in, n_out in zip(widths, widths[1:], strict=False)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return layers


def forward(layers, x):
    """ReLU after every layer but the last: the code is linear, and so is the reconstruction."""
    for layer in layers[:-1]:
        x = torch.relu(layer(x))
    return layers[-1](x)


def consecutive_batches(n_rows, size=BATCH):
    """Row numbers, batch after batch, round and round; the authors do not shuffle."""
    start = 0
    while True:
        yield np.arange(start, start + size) % n_rows
        start += size


class SGD:
    """Momentum as in the authors' Caffe: the velocity holds the rate, which is double for biases."""

    def __init__(self, layers, *others):
        self.parameters = [*(p for layer in layers for p in layer.parameters()), *others]
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    def step(self, loss, lr, momentum):
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for p, v, g in zip(self.parameters, self.velocities, gradients, strict=True):
                v.mul_(momentum).add_(g, alpha=lr * (2 if p.ndim == 1 else 1))
                p.sub_(v)


# -- Phase 1: a stacked denoising autoencoder ------------------------------------------------------


def schedule(step, share=SHARE):
    """Learning rate: a tenth after each 20,000 steps. Momentum: grows during the first 1,000."""
    return 0.1 * 0.1 ** int(step / (20_000 * share)), 0.9 * min(1, step / (1_000 * share))


def dropout(shape):
    """A mask that sets a fifth of the units to zero and scales the others up."""
    return (torch.rand(shape) >= 0.2) / 0.8


def pretrain_layer(f, g, below, batches, n_steps, *, first, last, schedule=schedule, mask=dropout):
    """Train layer f and its mirror g to restore the clean output of the layers below."""
    sgd, losses = SGD([f, g]), []
    for step in range(n_steps):
        x = below[next(batches)]
        h = f(x if first else x * mask(x.shape))  # the raw input is not corrupted,
        h = h if last else torch.relu(h) * mask(h.shape)  # nor is the code, which is linear;
        y = g(h) if first else torch.relu(g(h))  # and the raw input may be negative
        loss = (y - x).square().mean() / 2
        sgd.step(loss, *schedule(step))
        losses.append(loss.item())
    return losses


def fine_tune(encoder, decoder, x, batches, n_steps, *, schedule=schedule):
    """Train all layers together, without dropout."""
    sgd, losses = SGD([*encoder, *decoder]), []
    for step in range(n_steps):
        batch = x[next(batches)]
        loss = (forward(decoder, forward(encoder, batch)) - batch).square().mean() / 2
        sgd.step(loss, *schedule(step))
        losses.append(loss.item())
    return losses


def pretrain(encoder, decoder, x, share=SHARE):
    """Layer by layer, each on what the trained layers below make of the data; then the whole."""
    below, last = x, len(encoder) - 1
    for i, (f, g) in enumerate(zip(encoder, reversed(decoder), strict=True)):
        pretrain_layer(
            f, g, below, consecutive_batches(len(x)), int(50_000 * share), first=i == 0, last=i == last
        )
        with torch.no_grad():
            below = torch.relu(f(below))
    fine_tune(encoder, decoder, x, consecutive_batches(len(x)), int(100_000 * share))


# -- Phase 2: self-training on KL(P||Q) ------------------------------------------------------------


def soft_assignment(z, centroids):
    """Equation 1, with alpha = 1: q_ij, a Student-t kernel of the distance to each centroid."""
    kernel = 1 / (1 + (z[:, None] - centroids).square().sum(dim=2))
    return kernel / kernel.sum(dim=1, keepdim=True)


def target_distribution(q):
    """Equation 3: p_ij, q squared over the cluster frequency; q is that of all rows."""
    weight = q**2 / q.sum(dim=0)
    return weight / weight.sum(dim=1, keepdim=True)


def self_train(encoder, centroids, x, batches, n_steps, *, update_interval=40, tol=0.001):
    """Alternate: P from all rows, then steps on KL(P||Q) for encoder and centroids."""
    labels, losses = None, []
    for step in range(n_steps):
        if step % update_interval == 0:
            with torch.no_grad():
                q = soft_assignment(forward(encoder, x), centroids)
            p, before, labels = target_distribution(q), labels, q.argmax(dim=1)
            if before is not None and (labels != before).float().mean() < tol:
                break
            sgd = SGD(encoder, centroids)  # the authors start a new solver at each refresh
        batch = next(batches)
        q = soft_assignment(forward(encoder, x[batch]), centroids)
        loss = (p[batch] * (p[batch] / q).log()).sum(dim=1).mean()  # Equation 2, per row
        sgd.step(loss, lr=0.01, momentum=0.9)
        losses.append(loss.item())
    return losses


def accuracy(y, labels):
    """Share of rows that are right under the best one-to-one naming of the clusters."""
    table = confusion_matrix(y, labels)
    return table[linear_sum_assignment(table, maximize=True)].sum() / len(y)


if __name__ == "__main__":
    import sys, time
    SH = float(sys.argv[1]); W=tuple(map(int,sys.argv[2].split(',')))
    UI=int(sys.argv[3]); seed=int(sys.argv[4])
    t=time.time()
    torch.manual_seed(seed)
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x / np.sqrt(np.mean(x**2)), dtype=torch.float32)
    encoder, decoder = linear_layers(W), linear_layers(W[::-1])
    import functools
    sc=functools.partial(schedule,share=SH)
    below=x;last=3
    for i, (f, g) in enumerate(zip(encoder, reversed(decoder), strict=True)):
        l=pretrain_layer(
            f, g, below, consecutive_batches(len(x)), int(50_000 * SH), first=i == 0, last=i == last,schedule=sc
        )
        with torch.no_grad():
            below = torch.relu(f(below)) if i<last else f(below)
        print('layer',i,l[0],l[-1],time.time()-t)
    l=fine_tune(encoder, decoder, x, consecutive_batches(len(x)), int(100_000 * SH),schedule=sc)
    print('ft',l[0],l[-1],time.time()-t)
    with torch.no_grad(): z = forward(encoder, x)
    km = KMeans(10, n_init=20, random_state=0).fit(z.numpy())
    print('km',accuracy(y,km.labels_))
    c=nn.Parameter(torch.tensor(km.cluster_centers_))
    for k in range(4):
        l=self_train(encoder, c, x, consecutive_batches(len(x)), 1000,update_interval=UI)
        with torch.no_grad(): q = soft_assignment(forward(encoder, x), c)
        print('dec',len(l),accuracy(y,q.argmax(1)),time.time()-t)
