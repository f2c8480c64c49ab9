"""What the GPU's compiler makes of csrc/*.cu, without a GPU: IEEE arithmetic alone, nothing contracted, no float
atomics, nothing spilled. NVRTC comes with the `test` extra."""

import re

import nvrtc
import pytest

from compress._gpu import device

TOPICS = sorted(name.removesuffix(".cu") for name in device.sources() if name.endswith(".cu"))
FORBIDDEN = {
    r"\.ftz\b": "flushes denormals",
    r"\.approx\b|\b(div|sqrt|rcp)\.full\b|\b(ex2|lg2|sin|cos|tanh|rsqrt)\.": "is approximate",
    r"\b(fma|mad)\.([a-z]+\.)*f(32|64)\b": "is a product and a sum with one rounding",
    r"\b(add|sub|mul)\.(ftz\.)?f(32|64)\b": "may be contracted: it names no rounding",
    r"\b(red|atom)\.[a-z0-9.]*\bf(16|32|64)\b": "is a float atomic: its result depends on the order of threads",
    r"\bcall\b.*\b(printf|malloc|__internal)": "is a call",
}


def build(topic, real, arch, what, *options):
    texts = device._with_includes(f"{topic}.cu", device.sources(), {})
    source = texts.pop(f"{topic}.cu")
    return nvrtc.compile(source, f"{topic}.cu", texts, (arch, *device.OPTIONS, f"-Dreal={real}", *options), what)


def test_every_formula_is_in_some_kernel_and_free_of_cpu_only_constructs():
    texts, seen = device.sources(), {}
    for topic in TOPICS:
        device._with_includes(f"{topic}.cu", texts, seen)
    assert set(seen) == set(texts)
    for name, text in texts.items():
        if name.endswith(".h") and name != "portable.h":
            assert not re.search(r"__attribute__|__builtin_|#pragma|immintrin|#include <|#ifdef|#if ", text), name


@pytest.mark.parametrize("real", ["f32", "f64"])
@pytest.mark.parametrize("topic", TOPICS)
def test_arithmetic_is_exact(topic, real):
    ptx = build(topic, real, "-arch=compute_80", "PTX")[0].decode().rstrip("\0")
    kernel, wrong = None, []
    for line in ptx.splitlines():
        if entry := re.search(r"\.entry (\w+)", line):
            kernel = entry[1]
        for pattern, why in FORBIDDEN.items():
            if re.search(pattern, line.split("//")[0]):
                wrong.append(f"{kernel}: {line.strip()} {why}")
    assert set(re.findall(r"\.entry (\w+)", ptx)) == set(device._parameters(topic))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("real", ["f32", "f64"])
@pytest.mark.parametrize("topic", TOPICS)
def test_nothing_spills(topic, real, arch):
    _, log = build(topic, real, f"-arch={arch}", "CUBIN", "--ptxas-options=-v")
    found = re.findall(
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
        log,
        re.DOTALL,
    )
    assert {name for name, *_ in found} == set(device._parameters(topic)), log
    assert not [f for f in found if f[1:] != ("0", "0", "0")], log  # nor is anything indexed that registers should hold


def test_a_function_that_says_no_space_is_the_devices():
    """NVRTC 13.0 takes generic lambdas for functions of the host, 13.5 does not: which of them is here is chance."""
    assert "--device-as-default-execution-space" in device.OPTIONS


def test_the_gate_sees_what_it_is_for():
    """Default flags contract, flush and approximate: the patterns find it."""
    source = """extern "C" __global__ void wrong(float* x) {
      x[0] = x[1] * x[2] + x[3] / x[4]; x[5] = rsqrtf(x[6]); atomicAdd(x + 7, x[8]); }"""
    ptx = nvrtc.compile(source, "wrong.cu", {}, ("-arch=compute_80", "-ftz=true"))[0].decode()
    for pattern in list(FORBIDDEN)[:3]:
        assert re.search(pattern, ptx), pattern
    assert re.search(list(FORBIDDEN)[4], ptx)
