"""The server's end of compression: it sends a site the difference from the tensors that the site holds.

The server has a mirror of what each site holds. Each round it encodes the difference between the tensors that a site is
to get (its target) and the mirror, and moves the mirror by the decoded difference. Rounding errors thus remain in the
next difference (error feedback). A site that holds something else gets whole tensors, and then holds the same bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch

from fedfms.compression.codecs import Arrays, ArrayStore, Codec, Tensors, compressed, in_memory, layout
from fedfms.compression.digests import digest
from fedfms.errors import UpdateError

_Change = tuple[int, int]  # ids of a tensor that sites hold, and of the tensor that replaces it


@dataclass(frozen=True)
class Download:
    """What a site is sent.

    Attributes:
        base: digest of the tensors that the site must hold, and retains; empty: it forgets what it holds.
        differences: arrays in a codec's form are added to those tensors; the others are whole.
    """

    arrays: Arrays
    base: str = ""
    differences: bool = False


@dataclass
class _Line:
    """A site's target and download in the current round."""

    target: Tensors
    arrays: Arrays
    before: str | None  # digest of what the site must hold to decode `arrays`; None: it must forget what it holds


@dataclass
class DownlinkCompressor:
    """The mirrors of all sites, and the downloads of the current round.

    Sites in the same state share the tensors of their mirrors, as objects: a method that sends one model to all costs
    one mirror and one payload for any number of sites.

    Attributes:
        mirrors: all shared tensors that each site holds once it has read its newest download.
        store: where a round's new tensors are put, one after another.
    """

    codec: Codec
    mirrors: dict[str, Tensors] = field(default_factory=dict)
    store: ArrayStore = in_memory
    _lines: dict[str, _Line] = field(default_factory=dict)
    _holds: dict[str, str] = field(default_factory=dict)  # digest of each mirror

    def advance(self, targets: Mapping[str, Tensors], start: Tensors) -> None:
        """Open a round: move each site's mirror towards its target.

        The mirror of a site without a target is dropped, or sites that come and go would fill the memory. When such a
        site returns, it counts as new.

        Args:
            start: the global model, whose names include each target's. The mirror of a new site starts there (which
                is right in the first round), or at the mirror of a site with the same target.
        """
        for site in self.mirrors.keys() - targets.keys():
            del self.mirrors[site]
            self._holds.pop(site, None)
        cache: dict[int, bytes] = {}
        for site in self.mirrors.keys() - self._holds.keys():  # loaded from disk
            self._holds[site] = digest(self.mirrors[site], cache)
        known = [site for site in targets if site in self.mirrors]
        self._lines = {site: _Line(targets[site], {}, self._holds[site]) for site in known}
        self._step(known)
        self._admit({site: target for site, target in targets.items() if site not in self._lines}, start)

    def join(self, site: str, target: Tensors, start: Tensors) -> None:
        """Add a new site to the current round; see `advance`."""
        self._admit({site: target}, start)

    def _admit(self, targets: Mapping[str, Tensors], start: Tensors) -> None:
        lines, beginning = dict(self._lines), []
        cache: dict[int, bytes] = {}
        for site, target in targets.items():
            same = next((other for other, line in lines.items() if line.target is target), None)
            if same is not None:
                self._lines[site], self._holds[site] = lines[same], self._holds[same]
                self.mirrors[site] = dict(self.mirrors[same])
            else:
                self._lines[site], self.mirrors[site] = _Line(target, {}, digest(start, cache)), dict(start)
                beginning.append(site)
        self._step(beginning)

    def _step(self, sites: Sequence[str]) -> None:
        """Encode each change of one tensor into another once, for all sites that make it.

        Tensors that do not change are stored again as well; otherwise one of them would keep the old file open.
        """
        changes: dict[_Change, tuple[str, torch.Tensor | None, torch.Tensor]] = {}
        for site in sites:
            for name, target in self._lines[site].target.items():
                old = self.mirrors[site].get(name)
                changes[id(old), id(target)] = (name, old, target)
        left = {id(t): t for s in sites for name, t in self.mirrors[s].items() if name not in self._lines[s].target}
        arrays: dict[_Change, np.ndarray] = {}
        made = chain(self._stepped(changes, arrays), (tensor.numpy() for tensor in left.values()))
        news = list(self.store((str(index), array) for index, array in enumerate(made)).values())
        held, same = dict(zip(changes, news, strict=False)), dict(zip(left, news[len(changes) :], strict=True))
        for site in sites:
            line, mirror = self._lines[site], self.mirrors[site]
            for name in mirror.keys() - line.target.keys():
                mirror[name] = same[id(mirror[name])]
            for name, target in line.target.items():
                change = id(mirror.get(name)), id(target)
                line.arrays[name], mirror[name] = arrays[change], held[change]
        cache: dict[int, bytes] = {}
        for site in sites:
            self._holds[site] = digest(self.mirrors[site], cache)

    def _stepped(
        self,
        changes: Mapping[_Change, tuple[str, torch.Tensor | None, torch.Tensor]],
        arrays: dict[_Change, np.ndarray],
    ) -> Iterator[np.ndarray]:
        """What sites hold after each change; the array that is sent for it goes to `arrays`."""
        for change, (name, old, target) in changes.items():
            if old is None or not compressed(name, target):
                arrays[change] = target.numpy()
                yield arrays[change]
            else:
                arrays[change] = self.codec.encode(target - old)
                yield (old + self.codec.decode(arrays[change], tuple(target.shape))).numpy()

    def __contains__(self, site: object) -> bool:
        """Whether the site takes part in the current round."""
        return site in self._lines

    def received(self, site: str) -> Tensors:
        """The round's tensors at a site once it has read its download."""
        return {name: self.mirrors[site][name] for name in self._lines[site].target}

    def holds(self, site: str) -> str:
        """Digest of all shared tensors that the site then holds."""
        return self._holds[site]

    def download(self, site: str, held: str) -> Download:
        """The round's download for a site.

        Args:
            held: digest of what the site claims to hold. Where it is not the mirror's, whole tensors are sent.
        """
        if held == self._lines[site].before:
            return Download(self._lines[site].arrays, held, differences=True)
        received = self.received(site)
        whole = {name: tensor.numpy() for name, tensor in received.items()}
        if held == self._holds[site]:  # the site has read this round's download before
            return Download(whole, held)
        if len(received) < len(self.mirrors[site]):  # the site may not hold the other names
            self.mirrors[site], self._holds[site] = received, digest(received)
            self._lines[site] = replace(self._lines[site], before=None)
        return Download(whole)


def read_download(download: Download, over: Tensors, like: Mapping[str, torch.Tensor], codec: Codec) -> Tensors:
    """Decode a download at a site.

    Args:
        over: the tensors of the download's base.
        like: shapes and dtypes of all its names.

    Raises:
        UpdateError: an array has neither the codec's form nor its tensor's.
    """
    tensors: Tensors = {}
    for name, array in download.arrays.items():
        form = (tuple(array.shape), str(array.dtype))
        (own,), (coded,) = layout({name: like[name]}, None).values(), layout({name: like[name]}, codec).values()
        if form == own:
            tensors[name] = torch.from_numpy(np.array(array))
        elif form == coded and name in over:
            tensors[name] = over[name] + codec.decode(array, own[0])
        else:
            what = f"{name} arrived as {form[1]} {form[0]}, which is not a form of {own[1]} {own[0]}"
            raise UpdateError(what, do="use one version of the job at the server and at all sites")
    return tensors
