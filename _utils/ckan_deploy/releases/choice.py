"""Which release a rollback goes to, and which ones a prune removes. Looks at nothing but manifests."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ckan_deploy.errors import FormulaError
from ckan_deploy.releases.ids import check_id
from ckan_deploy.releases.manifest import GOOD, Manifest

# The states of a release that a deploy is at work on, or was when it died.
UNFINISHED = ("building", "built", "checked")


def rollback_target(manifests: Sequence[Manifest], current: str, to: str = "", force: bool = False) -> str:
    """
    Choose the release that a rollback goes to.

    manifests
        All manifests of a host.
    current
        The release that is current now, '' for none of ours.
    to
        A release asked for by name; by default the next older one that was live and is not bad.
    force
        Take a named release although it is marked bad.

    Returns the id. Raises ``FormulaError`` when there is none, or the one asked for cannot be one.
    """
    if to:
        return _asked_for(manifests, current, to, force)
    # Where a link to nothing of ours took the place of ``current``, the newest one was served before.
    good = [manifest.id for manifest in manifests if manifest.state in GOOD]
    older = [release for release in good if not current or release < current]
    if not older:
        raise FormulaError(
            f"there is no release older than {current or 'none'} that was live and is not bad, so nothing was "
            "changed; deploy a good release, or name one with to=RELEASE."
        )
    return max(older)


def prunable(manifests: Sequence[Manifest], current: str, keep: int, spare: Collection[str] = ()) -> list[str]:
    """
    Choose the releases that a prune removes.

    Kept are the ``keep`` newest releases that were live and are not bad, the current one always, and the release
    that a rollback would go to; and an unfinished one that is newer, since a deploy may be at work on it. Others that
    failed, were left half-built or are bad never count, and go.

    manifests
        All manifests of a host.
    current
        The release that is current.
    keep
        How many good releases to keep.
    spare
        Releases to leave alone, whatever their state.

    Returns the ids to remove, oldest first.
    """
    good = sorted((manifest.id for manifest in manifests if manifest.state in GOOD), reverse=True)
    kept = {current, *spare, *(m.id for m in manifests if m.state in UNFINISHED and m.id > current)}
    # The current release may be older than others (after a rollback); it takes one of the places.
    kept.update([i for i in good if i != current][: max(keep - 1, 0)])
    kept.update([i for i in good if i < current][:1])
    return sorted(manifest.id for manifest in manifests if manifest.id not in kept)


def all_but_newest(manifests: Sequence[Manifest]) -> list[str]:
    """
    Choose the releases that a prune removes on a host that builds for others: the newest that is whole stays, so that
    the next one has its layer.

    manifests
        All manifests of a host.

    Returns the ids to remove, oldest first.
    """
    newest = max((manifest.id for manifest in manifests if manifest.state == "built"), default="")
    # A build may be under way.
    kept = {newest, *(manifest.id for manifest in manifests if manifest.state == "building" and manifest.id > newest)}
    return sorted(manifest.id for manifest in manifests if manifest.id not in kept)


def _asked_for(manifests: Sequence[Manifest], current: str, to: str, force: bool) -> str:
    by_id = {manifest.id: manifest for manifest in manifests}
    if check_id(to) not in by_id:
        have = ", ".join(sorted(by_id)) or "none"
        raise FormulaError(f"there is no release {to} on this host; the releases here: {have}.")
    if to == current:
        raise FormulaError(f"release {to} is current already; name another one.")
    state = by_id[to].state
    if state in GOOD or (state == "bad" and force):
        return to
    if state == "bad":
        why = by_id[to].bad_reason or "no reason given"
        raise FormulaError(f"release {to} is marked bad ({why}); name another one, or repeat with force=True.")
    raise FormulaError(f"release {to} is not complete or never went live (it is {state}); name one that was live.")
