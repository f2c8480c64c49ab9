"""The command line. Heavy imports stay inside the commands, so that --help is instant."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

PAPERS = ("kashin", "shifted", "mast", "ist", "adom", "extragradient", "sgd", "certified_fl")
NEEDED = {"certified_fl": "torch"}  # beyond the extra [bench]


def frontier(args):
    from . import frontier

    options = {"seed": args.seed, "quick": args.quick, "trials": args.trials, "peers": args.peers}
    frontier.run(chosen(args), args.out, **options, detail=args.input != "all", backend=choose(args.backend))


def chosen(args):
    """(name, title, x, columns or None) of every input asked for, each made when its turn comes."""
    import compress

    from . import gradients

    if args.columns is not None and args.columns < 2:
        raise ValueError(f"--columns must be 2 or more, got {args.columns}")

    def checked(name, title, x, columns=None):
        x = compress.asarray(x)
        compress.compressor.check_finite(x)
        if not x.any():
            raise ValueError(f"{title}: {x.size} elements, none of them other than zero, so that errors have no scale")
        return name, title, x, args.columns or columns

    if args.distribution:
        x = gradients.synthetic(args.distribution, args.size, args.seed)
        yield checked(args.distribution, f"{args.distribution} input", x)
    elif args.input == "all":
        for name, made in gradients.INPUTS.items():
            if made.needs and find_spec(made.needs) is None:
                print(f"input {name} is missing: {made.needs} is not installed")
            else:
                yield checked(name, made.title, gradients.named(name, args.seed), made.columns)
    elif args.input in gradients.INPUTS:
        made = gradients.INPUTS[args.input]
        if made.needs and find_spec(made.needs) is None:
            raise ValueError(f"--input {args.input} needs {made.needs}: pip install {made.needs}")
        yield checked(args.input, made.title, gradients.named(args.input, args.seed), made.columns)
    else:
        path = Path(args.input)
        yield checked(path.stem, path.name, gradients.load(path))


def speed(args):
    if choose(args.backend) == "gpu":
        from . import gpu

        if args.pytest_args:
            raise ValueError(f"on a GPU there is nothing for {' '.join(args.pytest_args)} to go to")
        return gpu.run(args.out, check=False)

    from . import speed

    return speed.run(args.out, args.pytest_args)


def gpu_check(args):
    choose("gpu")
    from . import gpu

    return gpu.run(args.out, args.quick, speed=not args.bytes_only, sanitizer=not args.bytes_only)


def guide(args):
    from . import guide

    return guide.run(choose(args.backend))


def papers(args):
    from importlib import import_module

    missing = [name for name, module in NEEDED.items() if find_spec(module) is None]
    if args.paper is None:
        from .papers import run_all

        for name in missing:
            print(f"paper {name} is missing: {NEEDED[name]} is not installed")
        return run_all([name for name in PAPERS if name not in missing], args.out, args.full)
    if args.paper in missing:
        raise ValueError(f"{args.paper} needs {NEEDED[args.paper]}: pip install {NEEDED[args.paper]}")
    return import_module(f"bench.papers.{args.paper}").run(args.out, args.full)


def convergence(args):
    from . import convergence

    return convergence.run(args)


def ddp(args):
    from . import ddp

    if find_spec("torch") is None:
        raise ValueError("ddp needs torch: pip install torch")
    for name, value in (ddp.QUICK if args.quick else ddp.FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return ddp.run(args)


def diloco(args):
    if find_spec("torch") is None:
        raise ValueError("diloco needs torch: pip install torch")
    for name in ("seeds", "rounds"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise ValueError(f"--{name} must be 1 or more, got {value}")
    from . import diloco

    return diloco.run(args.out, args.quick, args.seeds, args.rounds, args.settings)


def choose(backend):
    """The backend to measure. 'gpu' without one is an error that says why, never a silent fall back."""
    import compress

    if backend == "cpu":
        return backend
    state = compress.backends()["gpu"]
    if backend == "auto":
        backend = "cpu" if state.startswith("unavailable") else "gpu"
        print(f"backend: {backend} (gpu {state})")
    elif state.startswith("unavailable"):
        sys.exit(f"a GPU was asked for, and is {state}")
    return backend


def parser():
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("--out", type=Path, default=Path("results"), help="folder for tables and figures")
    common = argparse.ArgumentParser(add_help=False, parents=[folder])
    common.add_argument("--backend", choices=("cpu", "gpu", "auto"), default="cpu")
    p = argparse.ArgumentParser(prog="python -m bench", description=__import__("bench").__doc__.split("\n")[0])
    commands = p.add_subparsers(required=True)

    f = commands.add_parser("frontier", parents=[common], help="bits, error, constants and speed of every compressor")
    source = f.add_mutually_exclusive_group()
    source.add_argument(
        "--input",
        default="digits",
        metavar="NAME|all|FILE.npy",
        help="normal, student, digits (default), adamw, momentum, feedback, transformer, transformer_adamw (these two "
        "need torch), all of them, or your own array, flattened; numbers other than float64 become float32",
    )
    source.add_argument("--distribution", choices=("normal", "student", "onehot"), help="a synthetic vector")
    f.add_argument("--size", type=int, default=1126410, help="length of the synthetic vector (default %(default)s)")
    f.add_argument("--columns", type=int, help="of the matrix that the vector is, for Trellis(shape=...)")
    f.add_argument("--trials", type=int, help="independent encodings per compressor (default 20; 2 with --quick)")
    f.add_argument("--quick", action="store_true", help="a few parameters and trials only, within 20 s")
    f.add_argument("--seed", type=int, default=0)
    f.add_argument("--peers", action="store_true", help="other packages on the same vector: the extra [peers] has them")
    f.set_defaults(command=frontier)

    s = commands.add_parser("speed", parents=[common], help="kernels against memcpy; other options go to pytest")
    s.set_defaults(command=speed)

    c = commands.add_parser("gpu_check", parents=[folder], help="on a GPU: bytes against the CPU, memory, speed")
    c.add_argument("--quick", action="store_true", help="short vectors only")
    c.add_argument("--bytes-only", action="store_true", help="neither compute-sanitizer nor speeds")
    c.set_defaults(command=gpu_check)

    g = commands.add_parser("guide", parents=[common], help="the table behind compress.recommend, measured again")
    g.set_defaults(command=guide)

    q = commands.add_parser("papers", parents=[folder], help="the checkable statements of a paper")
    q.add_argument("paper", nargs="?", choices=PAPERS, help="all of them, one after another, where none is named")
    q.add_argument("--full", action="store_true", help="larger problems and longer runs, where the paper has them")
    q.set_defaults(command=papers)

    v = commands.add_parser("convergence", parents=[folder], help="error against bits, methods by compressors")
    v.add_argument(
        "--problem",
        default="quadratic",
        metavar="quadratic[:D] | ridge:SOURCE | logistic:SOURCE",
        help="SOURCE: breast_cancer, diabetes, digits, or a LIBSVM or .npz file (default %(default)s)",
    )
    v.add_argument("--workers", type=int, default=10, help="(default %(default)s)")
    v.add_argument(
        "--shards", default="equal", metavar="equal|sorted|dirichlet", help="rows of a worker (default %(default)s)"
    )
    v.add_argument(
        "--condition", type=float, default=30, help="L / mu, which ridge and logistic get by lam (default %(default)s)"
    )
    v.add_argument(
        "--methods",
        default="DIANA,EF21",
        help="of DCGD, DCGDStar, DIANA, RandDIANA, GDCI, VRGDCI, EF14, EF21, MARINA, separated by commas "
        "(default %(default)s)",
    )
    v.add_argument(
        "--compressors",
        default="Identity;RandK(0.1);TopK(0.1);Kashin(3);Trellis(bits=2);Trellis(bits=2, unbiased=True)",
        help="separated by semicolons (default %(default)s)",
    )
    v.add_argument("--gamma", type=float, help="step size of all, in place of those that theorems allow")
    v.add_argument("--steps", type=int, default=5000, help="at most (default %(default)s)")
    v.add_argument("--until", type=float, default=1e-8, help="error to stop at (default %(default)s)")
    v.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of x, and of Identity's bits")
    v.add_argument("--seed", type=int, default=0)
    v.add_argument("--progress", action="store_true")
    v.add_argument("--mpi", action="store_true", help="workers on ranks: mpiexec -n 2 python -m mpi4py -m bench ...")
    v.set_defaults(command=convergence)

    d = commands.add_parser("ddp", parents=[folder], help="training over slow links: time to a loss, bytes, break-even")
    d.add_argument("--tasks", nargs="+", metavar="cnn|transformer", help="(default both)")
    d.add_argument("--ranks", type=int, nargs="+", help="(default 2 4)")
    d.add_argument("--rates", type=float, nargs="+", help="Mbit/s (default 10 100 1000)")
    d.add_argument("--seeds", type=int, help="of runs with most ranks; those with fewer have one (default 3)")
    d.add_argument("--peers", help="names as in the tables, separated by commas (default all)")
    d.add_argument("--ours", help="compressors for compress.torch.DDPHook, separated by semicolons")
    d.add_argument("--record", type=Path, metavar="ddp.json", help="show what an earlier run has measured")
    d.add_argument("--quick", action="store_true", help="the CNN on 2 ranks at 100 Mbit/s, one seed: two minutes")
    d.set_defaults(command=ddp)

    o = commands.add_parser("diloco", parents=[folder], help="DiLoCo over compressed messages: loss against bytes")
    o.add_argument("--settings", nargs="+", metavar="NAME", help='names as in the table (default four), beside "dense"')
    o.add_argument("--seeds", type=int, help="(default 3; 1 with --quick)")
    o.add_argument("--rounds", type=int, help="of 30 steps of 4 workers (default 600; 8 with --quick)")
    o.add_argument("--quick", action="store_true", help="a few rounds, of which no loss is claimed: a minute")
    o.set_defaults(command=diloco)
    return p


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or (argv[0].startswith("-") and argv[0] not in ("-h", "--help")):
        argv.insert(0, "frontier")
    p = parser()
    args, rest = p.parse_known_args(argv)
    if rest and args.command is not speed:
        p.error(f"unrecognised arguments: {' '.join(rest)}")
    args.pytest_args = rest
    try:
        return args.command(args)
    except ValueError as error:
        p.exit(2, f"{p.prog}: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
