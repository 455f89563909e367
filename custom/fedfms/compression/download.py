"""From the server to its sites: differences to what each site holds, or the whole where it holds something else.

The server keeps a mirror of what each site holds. What a round's rounding lost is still between the mirror and the
next target, and so goes out with it. Whichever form a site gets, it then holds the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch

from fedfms.compression.codecs import Arrays, Codec, Keep, compressed, in_memory, layout
from fedfms.compression.digest import digest
from fedfms.errors import UpdateError

Tensors = dict[str, torch.Tensor]
_Change = tuple[int, int]  # ids of a tensor that sites hold and of what it is to become


@dataclass(frozen=True)
class Download:
    """A message to a site.

    `base`: digest of all that the site must hold for it, and keeps beside it; empty: whatever it holds is to be
    forgotten. `differences`: whether arrays in a codec's form are added to that; the others are whole.
    """

    arrays: Arrays
    base: str = ""
    differences: bool = False


@dataclass
class _Line:
    """A site's part in the round that is going on."""

    target: Tensors
    arrays: Arrays
    before: str | None  # digest of what it must hold to read them; None: it is to forget that it ever did


@dataclass
class DownlinkCompressor:
    """The server's side. `mirrors`: all shared tensors that each site holds once it has read its newest message.
    `keep` puts a round's new ones by, array after array as they are made, until the next round's are there.

    Sites in the same state have the same tensors in their mirrors, as objects: a method that sends one model to all
    costs one mirror and one message, however many sites there are.
    """

    codec: Codec
    mirrors: dict[str, Tensors] = field(default_factory=dict)
    keep: Keep = in_memory
    _lines: dict[str, _Line] = field(default_factory=dict)
    _holds: dict[str, str] = field(default_factory=dict)  # digest of each mirror

    def advance(self, targets: Mapping[str, Tensors], start: Tensors) -> None:
        """Make a round's messages: bring each site's mirror nearer to its target.

        The mirror of a site without a target is forgotten: of those who come and go, each would keep a model of its
        own in memory. When it comes back it is as one that was never served.

        Args:
            start: the global model, of which each target has names. A site that was never served is taken to hold it
                (in the first round it does), or to be where one of the same target is.
        """
        for site in self.mirrors.keys() - targets.keys():
            del self.mirrors[site]
            self._holds.pop(site, None)
        known: dict[int, bytes] = {}
        for site in self.mirrors.keys() - self._holds.keys():  # as they came from disk
            self._holds[site] = digest(self.mirrors[site], known)
        served = [site for site in targets if site in self.mirrors]
        self._lines = {site: _Line(targets[site], {}, self._holds[site]) for site in served}
        self._step(served)
        self._admit({site: target for site, target in targets.items() if site not in self._lines}, start)

    def join(self, site: str, target: Tensors, start: Tensors) -> None:
        """A site that was never served takes part in the round that is going on; see `advance`."""
        self._admit({site: target}, start)

    def _admit(self, targets: Mapping[str, Tensors], start: Tensors) -> None:
        lines, beginning = dict(self._lines), []
        known: dict[int, bytes] = {}
        for site, target in targets.items():
            twin = next((other for other, line in lines.items() if line.target is target), None)
            if twin is not None:
                self._lines[site], self._holds[site] = lines[twin], self._holds[twin]
                self.mirrors[site] = dict(self.mirrors[twin])
            else:
                self._lines[site], self.mirrors[site] = _Line(target, {}, digest(start, known)), dict(start)
                beginning.append(site)
        self._step(beginning)

    def _step(self, sites: Sequence[str]) -> None:
        """Each change of a tensor into another is worked out once, however many sites make it.

        What a part of the model leaves as it was is kept anew as well: of a file of many tensors, one would hold all.
        """
        changes: dict[_Change, tuple[str, torch.Tensor | None, torch.Tensor]] = {}
        for site in sites:
            for name, target in self._lines[site].target.items():
                old = self.mirrors[site].get(name)
                changes[id(old), id(target)] = (name, old, target)
        left = {id(t): t for s in sites for name, t in self.mirrors[s].items() if name not in self._lines[s].target}
        arrays: dict[_Change, np.ndarray] = {}
        made = chain(self._stepped(changes, arrays), (tensor.numpy() for tensor in left.values()))
        news = list(self.keep((str(index), array) for index, array in enumerate(made)).values())
        held, same = dict(zip(changes, news, strict=False)), dict(zip(left, news[len(changes) :], strict=True))
        for site in sites:
            line, mirror = self._lines[site], self.mirrors[site]
            for name in mirror.keys() - line.target.keys():
                mirror[name] = same[id(mirror[name])]
            for name, target in line.target.items():
                change = id(mirror.get(name)), id(target)
                line.arrays[name], mirror[name] = arrays[change], held[change]
        known: dict[int, bytes] = {}
        for site in sites:
            self._holds[site] = digest(self.mirrors[site], known)

    def _stepped(
        self,
        changes: Mapping[_Change, tuple[str, torch.Tensor | None, torch.Tensor]],
        arrays: dict[_Change, np.ndarray],
    ) -> Iterator[np.ndarray]:
        """What sites hold after each change; what is sent of it goes to `arrays`."""
        for change, (name, old, target) in changes.items():
            if old is None or not compressed(name, target):
                arrays[change] = target.numpy()
                yield arrays[change]
            else:
                arrays[change] = self.codec.encode(target - old)
                yield (old + self.codec.decode(arrays[change], tuple(target.shape))).numpy()

    def __contains__(self, site: object) -> bool:
        """Whether the site takes part in the round that is going on."""
        return site in self._lines

    def received(self, site: str) -> Tensors:
        """What a site has received of the round once it has read its message."""
        return {name: self.mirrors[site][name] for name in self._lines[site].target}

    def holds(self, site: str) -> str:
        """Digest of all that it then holds."""
        return self._holds[site]

    def message(self, site: str, claim: str) -> Download:
        """The round's message to a site that says by a digest what it holds: the whole, unless that is its mirror."""
        if claim == self._lines[site].before:
            return Download(self._lines[site].arrays, claim, differences=True)
        received = self.received(site)
        whole = {name: tensor.numpy() for name, tensor in received.items()}
        if claim == self._holds[site]:  # it has done this round before
            return Download(whole, claim)
        if len(received) < len(self.mirrors[site]):  # of the other names nothing is known
            self.mirrors[site], self._holds[site] = received, digest(received)
            self._lines[site] = replace(self._lines[site], before=None)
        return Download(whole)


def read_download(download: Download, over: Tensors, like: Mapping[str, torch.Tensor], codec: Codec) -> Tensors:
    """The tensors of a message at a site that holds `over`, its base; `like` has the shapes of all its names.

    Raises:
        UpdateError: an array has neither the form of the codec nor that of its tensor.
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
            what = f"{name} came as {form[1]} {form[0]}, which is no form of {own[1]} {own[0]}"
            raise UpdateError(what, do="use one version of the job at the server and at all sites")
    return tensors
