"""``poncho-wq cache …``: what is in the cache, and what may go."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from poncho_wq.cli import FAILED, SUCCESS, main_of
from poncho_wq.errors import SpecError

if TYPE_CHECKING:
    from poncho_wq.cache import Cache
    from poncho_wq.caching.listing import Listed

_DESCRIPTION = """\
Look after the cache of environments.

It is in $PONCHO_CACHE_DIR, else in the user's cache directory. With $PONCHO_CACHE_SIZE (20G, 500MB, 20GiB), every build
is followed by removing the environments that were not used for longest, until tarballs and layers take no more than
that. Without it nothing is evicted: an environment may be wanted where it cannot be built. What a living process uses
is never removed.
"""
_AGE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhdw])\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Each subcommand sets ``command``, the function that does it."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--cache-dir", metavar="DIR", help="the cache (default: $PONCHO_CACHE_DIR, else the user's)")
    common.add_argument("--json", action="store_true", help="as JSON")
    formatter = argparse.RawDescriptionHelpFormatter
    ap = argparse.ArgumentParser(prog=prog, description=_DESCRIPTION, formatter_class=formatter)
    commands = ap.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, parents=[common], help=text, description=text[0].upper() + text[1:] + ".")
        sub.set_defaults(command=command)
        return sub

    which = "the beginning of its hash or identity, or its tarball"
    add("list", _list, "list the environments, the one not used for longest first")
    info = add("info", _info, "show what the cache takes of the disk, or what is known of one environment")
    info.add_argument("environment", metavar="ENV", nargs="?", help=which)
    verify = add("verify", _verify, "read everything again and compare it with its digests")
    verify.add_argument("environments", metavar="ENV", nargs="*", help=f"only these tarballs, and all layers: {which}")
    verify.add_argument("--remove", action="store_true", help="remove what is damaged; it is built again when wanted")
    gc = add("gc", _gc, "remove what is of no use, and what was not used for longest")
    gc.add_argument("--max-size", metavar="SIZE", type=_size, default="", help="leave at most this much, such as 20G "
                    "(default: $PONCHO_CACHE_SIZE, else no limit)")  # fmt: skip
    gc.add_argument(
        "--older-than", metavar="AGE", type=_age, help="remove what was not used for so long: 90m, 12h, 30d"
    )
    gc.add_argument("--dry-run", "-n", action="store_true", help="only say what would be removed")
    rm = add("rm", _rm, "remove environments")
    rm.add_argument("environments", metavar="ENV", nargs="+", help=which)
    return ap


def _size(text: str) -> int | None:
    from poncho_wq.caching.admin import limit, parse_size

    try:
        return parse_size(text) if text else limit()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _age(text: str) -> float:
    found = _AGE.match(text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a number and one of s, m, h, d, w, such as 30d, got {text!r}")
    return float(found[1]) * _SECONDS[found[2]]


def _cache(args: argparse.Namespace) -> Cache:
    from poncho_wq.cache import Cache, default_root

    return Cache(args.cache_dir or default_root())


def _chosen(cache: Cache, words: Iterable[str]) -> list[Listed]:
    """The one entry that each word means.  Raises ``SpecError``."""
    from poncho_wq.caching.listing import find, scan

    entries = scan(cache)
    chosen = {}
    for word in words:
        found = find(entries, word)
        if not found:
            raise SpecError(f"{word}: no such environment in {cache.root}", advice="see: poncho-wq cache list")
        if len({each.spec_hash for each in found}) > 1:
            names = ", ".join(each.spec_hash[:16] for each in found[:8])
            raise SpecError(f"{word}: may be any of {len(found)}: {names}", advice="give more of the hash")
        chosen[found[0].spec_hash] = found[0]
    return list(chosen.values())


def _list(args: argparse.Namespace) -> int:
    from poncho_wq.caching.listing import scan

    entries = scan(_cache(args))
    if args.json:
        return _print_json([_facts(each) for each in entries])
    if not entries:
        print(f"no environments in {_cache(args).root}", file=sys.stderr)
        return SUCCESS
    print(f"{'HASH':<12}  {'SIZE':>8}  {'UNUSED FOR':>10}  {'PYTHON':<8}  {'PLATFORM':<13}  TARBALL")
    for each in entries:
        name = each.tarball.name if each.tarball is not None else "(damaged)"
        print(
            f"{each.spec_hash[:12]}  {_bytes(each.size):>8}  {_ago(each.used):>10}  {each.python or '-':<8}  "
            f"{each.platform or '-':<13}  {name}{'  in use' if each.in_use else ''}"
        )
    return SUCCESS


def _info(args: argparse.Namespace) -> int:
    cache = _cache(args)
    if args.environment is not None:
        return _info_of_one(args, cache)
    from poncho_wq.caching.admin import limit
    from poncho_wq.caching.listing import scan
    from poncho_wq.caching.usage import areas

    entries, parts, most = scan(cache), areas(cache), limit()
    size, files = sum(each.size for each in parts), sum(each.files for each in parts)
    used = sum(each.in_use for each in entries)
    if args.json:
        table = [{"name": a.name, "path": str(a.path), "size": a.size, "files": a.files} for a in parts]
        facts = {"root": str(cache.root), "limit": most, "environments": len(entries), "in_use": used}
        return _print_json({**facts, "size": size, "files": files, "areas": table})
    print(f"directory     {cache.root}")
    print(f"limit         {'none ($PONCHO_CACHE_SIZE)' if most is None else _bytes(most) + ' of tarballs and layers'}")
    print(f"environments  {len(entries)}, {used} in use")
    for area in parts:
        where = "" if area.path.is_relative_to(cache.root) else f"  {area.path}"
        advice = f"  ({area.advice})" if area.advice else ""
        print(f"  {area.name:<12}  {_bytes(area.size):>8}  {area.files:>8} files{where}{advice}")
    print(f"{'on the disk':<14}  {_bytes(size):>8}  {files:>8} files")
    return SUCCESS


def _info_of_one(args: argparse.Namespace, cache: Cache) -> int:
    (entry,) = _chosen(cache, [args.environment])
    facts = _facts(entry)
    if args.json:
        return _print_json(facts)
    facts["size"] = _bytes(entry.size)
    facts["used"] = f"{_ago(entry.used)} ago"
    facts["layers"] = len(entry.layers)
    for name, value in facts.items():
        print(f"{name.replace('_', ' '):<12} {value if value is not None else '-'}")
    if entry.tarball is not None:
        print(f"{'packages':<12} poncho-wq env show {entry.tarball}")
    return SUCCESS


def _verify(args: argparse.Namespace) -> int:
    from poncho_wq.caching.listing import scan
    from poncho_wq.caching.verify import mend, verify
    from poncho_wq.cli.display import progress

    cache = _cache(args)
    entries = _chosen(cache, args.environments) if args.environments else scan(cache)
    with progress(quiet=args.json or not sys.stderr.isatty()) as say:
        damages = verify(cache, entries, on_progress=say)
    stay = mend(cache, damages) if args.remove and damages else []
    gone = [each for each in damages if args.remove and each not in stay]
    if args.json:
        table = [
            {"kind": each.kind, "path": str(each.path), "problem": each.problem, "removed": each in gone,
             "hash": each.entry.spec_hash if each.entry else None}
            for each in damages
        ]  # fmt: skip
        _print_json(table)
    else:
        for each in damages:
            done = "  removed" if each in gone else "  in use: not handed out any more" if each in stay else ""
            print(f"{each.path}: {each.problem}{done}")
        print(f"{len(entries)} environments, {len(damages)} damaged files", file=sys.stderr)
        if damages and not args.remove:
            print("to have them built again: poncho-wq cache verify --remove", file=sys.stderr)
    return FAILED if len(gone) < len(damages) else SUCCESS


def _gc(args: argparse.Namespace) -> int:
    from poncho_wq.caching.admin import collect

    cache = _cache(args)
    done = collect(cache, max_size=args.max_size, older_than=args.older_than, dry_run=args.dry_run)
    if args.json:
        return _print_json(
            {
                "evicted": [_facts(each) for each in done.evicted], "in_use": [_facts(each) for each in done.in_use],
                "superseded": done.superseded, "layers": done.layers, "leftovers": done.leftovers,
                "freed": done.freed, "left": done.left, "dry_run": args.dry_run,
            }
        )  # fmt: skip
    for each in done.evicted:
        print(f"{each.spec_hash[:12]}  {_bytes(each.size):>8}  unused for {_ago(each.used)}")
    would = "would be " if args.dry_run else ""
    print(
        f"{_bytes(done.freed)} {would}freed, {_bytes(done.left)} left: {len(done.evicted)} environments, "
        f"{done.superseded} superseded tarballs, {done.layers} layers, {done.leftovers} leftovers {would}removed",
        file=sys.stderr,
    )
    if done.in_use:
        print(f"{len(done.in_use)} environments are in use and stay", file=sys.stderr)
    return SUCCESS


def _rm(args: argparse.Namespace) -> int:
    from poncho_wq.caching.admin import remove

    cache = _cache(args)
    gone, stay = remove(cache, _chosen(cache, args.environments))
    if args.json:
        _print_json({"removed": [_facts(each) for each in gone], "in_use": [_facts(each) for each in stay]})
    else:
        for each in gone:
            print(f"{each.spec_hash[:12]}  removed")
    for each in stay:
        print(
            f"error: {each.spec_hash[:12]}: a running process uses it, or builds it now; end that first",
            file=sys.stderr,
        )
    return FAILED if stay else SUCCESS


def _facts(entry: Listed) -> dict[str, Any]:
    return {
        "hash": entry.spec_hash,
        "tarball": None if entry.tarball is None else str(entry.tarball),
        "identity": entry.identity,
        "size": entry.size,
        "used": entry.used,
        "python": entry.python,
        "platform": entry.platform,
        "compression": entry.compression,
        "layers": list(entry.layers),
        "superseded": len(entry.superseded),
        "in_use": entry.in_use,
    }


def _print_json(what: object) -> int:
    sys.stdout.write(json.dumps(what, indent=2) + "\n")
    return SUCCESS


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _ago(when: float) -> str:
    seconds = max(time.time() - when, 0)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


main = main_of(parser)


if __name__ == "__main__":
    sys.exit(main())
