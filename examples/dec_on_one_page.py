"""Deep Embedded Clustering on one page: Xie, Girshick, Farhadi, ICML 2016, in plain PyTorch.

Run it to cluster scikit-learn's handwritten digits. Method and constants are those of the paper and
of its authors' code; the network is smaller and the training shorter: it takes about a minute.
"""

from itertools import count, pairwise

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import confusion_matrix

WIDTHS = (64, 100, 100, 200, 10)  # in the paper d-500-500-2000-10, for every data set
SHARE = 1 / 25  # of the paper's 50,000 steps for each layer and 100,000 for fine-tuning


def linear_layers(widths):
    """Weights from N(0, 0.01²), biases zero."""
    layers = [torch.nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths)]
    for layer in layers:
        torch.nn.init.normal_(layer.weight, std=0.01)
        torch.nn.init.zeros_(layer.bias)
    return layers


def forward(layers, x):
    """ReLU after each layer but the last: the code and the reconstruction are linear."""
    for layer in layers[:-1]:
        x = torch.relu(layer(x))
    return layers[-1](x)


def consecutive(n_rows, size=256):
    """Row numbers of batch after batch, round and round: the authors' code does not shuffle."""
    for start in count(step=size):
        yield np.arange(start, start + size) % n_rows


class SGD:
    """As in Caffe the velocity holds the learning rate, and biases learn twice as fast."""

    def __init__(self, layers, *others):
        self.parameters = [*(p for layer in layers for p in layer.parameters()), *others]
        self.velocities = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def step(self, loss, lr, momentum):
        """Move all parameters against the gradient of the loss."""
        gradients = torch.autograd.grad(loss, self.parameters)
        for p, v, g in zip(self.parameters, self.velocities, gradients, strict=True):
            v.mul_(momentum).add_(g, alpha=2 * lr if p.ndim == 1 else lr)
            p.sub_(v)
        return loss.item()


# -- Phase 1: a stacked denoising autoencoder ------------------------------------------------------
def schedule(step, share):
    """Rate 0.1, a tenth after each 20,000 steps; momentum growing to 0.9 in the first 1,000."""
    return 0.1 * 0.1 ** int(step / (20_000 * share)), 0.9 * min(1, step / (1_000 * share))


def dropout(shape):
    """A mask that sets a fifth of the units to zero and scales up the others."""
    return (torch.rand(shape) >= 0.2) / 0.8


def pretrain_layer(f, g, below, batches, share, mask, *, first, last):
    """Train layer f and its mirror g to restore the clean output of the layers below."""
    sgd, losses = SGD([f, g]), []
    for step in range(round(50_000 * share)):
        x = below[next(batches)]
        h = f(x) if first else f(x * mask(x.shape))  # the data themselves stay whole,
        h = h if last else torch.relu(h) * mask(h.shape)  # and so does the code, which is linear;
        y = g(h) if first else torch.relu(g(h))  # data may be negative, hidden units are not
        loss = (y - x).square().mean() / 2  # mean over rows and columns: the rate 0.1 needs it
        losses.append(sgd.step(loss, *schedule(step, share)))
    return losses


def pretrain(encoder, decoder, x, share=SHARE, batches=consecutive, mask=dropout):
    """Layer by layer, each on what the trained layers below make of the data, then the whole."""
    below, losses = x, []
    for f, g in zip(encoder, reversed(decoder), strict=True):
        ends = {"first": f is encoder[0], "last": f is encoder[-1]}
        losses += pretrain_layer(f, g, below, batches(len(x)), share, mask, **ends)
        below = torch.relu(f(below)).detach()
    sgd, order = SGD([*encoder, *decoder]), batches(len(x))
    for step in range(round(100_000 * share)):  # fine-tuning, without dropout
        rows = x[next(order)]
        loss = (forward(decoder, forward(encoder, rows)) - rows).square().mean() / 2
        losses.append(sgd.step(loss, *schedule(step, share)))
    return losses


# -- Phase 2: self-training on KL(P||Q) ------------------------------------------------------------
def soft_assignment(z, centroids):
    """Equation 1 with alpha = 1: q is a Student-t kernel of the distance to each centroid."""
    kernel = 1 / (1 + (z[:, None] - centroids).square().sum(dim=2))
    return kernel / kernel.sum(dim=1, keepdim=True)


def target_distribution(q):
    """Equation 3: p is q² over the cluster frequency, the sum of q over all rows."""
    weight = q**2 / q.sum(dim=0)
    return weight / weight.sum(dim=1, keepdim=True)


def self_train(encoder, centroids, x, batches, tol=0.001, update_interval=40, n_steps=20_000):
    """Sharpen q to p, let encoder and centroids follow p for lambda = 40 steps, and again."""
    labels, losses = None, []
    for step in range(n_steps):
        if step % update_interval == 0:
            q = soft_assignment(forward(encoder, x), centroids).detach()
            p, before, labels = target_distribution(q), labels, q.argmax(dim=1)
            if before is not None and (labels != before).float().mean() < tol:
                break
            sgd = SGD(encoder, centroids)  # the authors' code starts its solver anew
        rows = next(batches)
        q = soft_assignment(forward(encoder, x[rows]), centroids)
        kl = (p[rows] * (p[rows] / q).log()).sum(dim=1).mean()  # equation 2, per row
        losses.append(sgd.step(kl, lr=0.01, momentum=0.9))
    return losses


def accuracy(y, labels):
    """Share of rows that are right when clusters are named one to one in the best way."""
    table = confusion_matrix(y, labels)
    return table[linear_sum_assignment(table, maximize=True)].sum() / len(y)


def main(share=SHARE):
    """Cluster the digits; their labels y are for scoring alone."""
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    x = torch.tensor(x / np.sqrt(np.mean(x**2)), dtype=torch.float32)  # (1/d) |x|² is about 1
    encoder, decoder = linear_layers(WIDTHS), linear_layers(WIDTHS[::-1])
    pretrain(encoder, decoder, x, share)
    kmeans = KMeans(10, n_init=20, random_state=0).fit(forward(encoder, x).detach())
    print(f"autoencoder and k-means: accuracy {accuracy(y, kmeans.labels_):.3f}")
    centroids = torch.tensor(kmeans.cluster_centers_, requires_grad=True)
    self_train(encoder, centroids, x, consecutive(len(x)))
    labels = soft_assignment(forward(encoder, x), centroids).argmax(dim=1)
    print(f"Deep Embedded Clustering: accuracy {accuracy(y, labels):.3f}")


if __name__ == "__main__":
    main()
