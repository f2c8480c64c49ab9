"""The formula headers compile as CUDA C++, with NVRTC or nvcc where one is installed."""

import ctypes
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
HEADERS = sorted(p.name for p in CSRC.glob("*.h") if not p.stem.endswith("_cpu"))

SOURCE = (
    "".join(f'#include "{name}"\n' for name in HEADERS)
    + r"""
extern "C" __global__ void formulas(const float* x, const double* y, u32* code, u64 key, i32 levels) {
  u64 e = blockIdx.x * (u64)blockDim.x + threadIdx.x;
  dither_bits d = correlated_bits(key, key + 1, 3, (u32)levels, e);
  code[5 * e] = independent_bits(key).workers;
  code[5 * e] += grid_code_f32(x[e], 1.0f, levels, e, d) + sign_bit(e, key);
  code[5 * e + 1] = grid_code_f64(y[e], 1.0, levels, e, d) + nearest_code_f32(x[e], 1.0f, levels);
  code[5 * e + 2] = natural_code_f32(x[e], 1.0f, 1 - levels, e, d);
  code[5 * e + 3] = natural_code_f64(y[e], 1.0, 1 - levels, e, d);
  code[5 * e + 4] = trit_digit((u32)(e & 255), (int)(e % 5)) + (u32)packed_bits((i64)e, code_width((u32)levels));
  code[5 * e] += (u32)(term_square(y[e]) + term_abs(y[e]) + hadamard_scale(levels) + rotation_block(levels));
  code[5 * e + 1] += bits_f32(flip_sign_f32(x[e], code[0], levels)) + magnitude_f32(x[e]);
  code[5 * e + 2] += kashin_word(kashin_round_up(y[e]), floor_log2(y[e]), 1) + kashin_draw(64, 40, (i64)e, 24);
  code[5 * e + 3] += bits_f32(kashin_excess_f32(x[e], 1.0f) + kashin_shift_f32(x[e], 3) +
                              kashin_null_f32(x[e], code[0], 5)) + kashin_word_valid(code[0]);
  code[5 * e + 4] += (u32)(kashin_excess_f64(y[e], kashin_word_level(code[0])) + kashin_shift_f64(y[e], 9));
  bijection pi = bijection_of(key, 1000);
  code[5 * e] += subset_index((u32)e, pi) + mask32(e, key) + (u32)rice_bound_bits(1000, e) + rice_length(code[0]);
  u32 sums[66];
  f64 weights[66];
  const f64 cosines[65] = DCT_COSINES;
  subset_sums(2048, subset_cut(4096), 64, weights, sums);
  subset_reader in = subset_open((const u8*)x, 59);
  subset_writer to = {key, key, (u8*)code};
  subset_part part;
  code[5 * e + 1] += subset_find(&in, sums, 65, &part) + subset_find_position(&in, 100, &part);
  subset_take(&in, part);
  subset_put(&to, subset_symbol(key, sums, 2));
  subset_close(&to, (u8*)code + 59);
  level_line line = {1, 2, 3};
  chunk_levels ladder = chunk_levels_of(line, line_scale_below(line, code[0]), line_ratio_below(line, code[1]), 8);
  code[5 * e + 2] += line_of(chunk_level(ladder, (u32)(e & 7))) + line_valid(line, y[e]) + (u32)chunk_bytes(e, 64, 2);
  code[5 * e + 3] += line_of(dct_scale(64, 1) * dct_cosine(cosines, code[0])) + (u32)dct_block(e, 3);
  i32 below = 0;
  code[5 * e + 1] += eden_code_f32(eden_position_f32(x[e], 1.0f, 10), eden_cell(eden_alphabet_of(levels), 3, &below));
  code[5 * e + 2] += eden_code_f64(eden_position_f64(y[e], 1.0, 10), 7) + (u32)eden_block_bytes(4096, levels);
  code[5 * e + 3] += quotient16(code[0], 0.2f);
  LevelCode level = {8, 0, 1, 1, 64};
  TrellisCost cost = {1, 0, 0, 0, 0, 1};
  i16 metric[4];
  u32 ph = level_phase(subtract_word(e, key)), q = trellis_q(code[0] & 7, 8), bits = level_low_bits(code[1]);
  f32 at = x[e] + level_dither_of(code[1], 8);
  i32 position = trellis_position(at, cost.scale, cost.shift, 0);
  i32 j = trellis_level(position, at < 0, (i32)q, 1, trellis_terms(&cost), levels, 0);
  i32 m = (j - (i32)q) / 2 - level_wrap(ph, q, 8);
  trellis_metrics((i16)position, (i16)position, 0, trellis_terms(&cost), levels, 0, 1, metric);
  code[5 * e] += level_bucket((u32)m, bits) + level_bucket_first(40, level_bucket_bits(40)) + trellis_next(q, 1, 8);
  u32 mean = level_mean(code[2], level_magnitude(level_from(m, q, 1), ph), level_gain((i64)e) + level_column_gain(3));
  u32 model = level_model(&level, q, ph, level_octave(mean)) + level_octave_between(mean, code[3]);
  u32 table = entropy_slot(model, entropy_code(3, 4) & 0xffff, 1), state = entropy_put(code[4], entropy_extra_code(q));
  code[5 * e + 1] += entropy_take(state, table) + entropy_full(state, table) + entropy_order(entropy_lanes((i64)e)) +
                     entropy_extra(entropy_low_code(1, 2), 3) + (u32)level_place((i64)e, 4096, 32, 1) +
                     (u32)metric[q] + (u32)trellis_far(at);
}
"""
)
FLAGS = ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]


def nvrtc():
    """The NVRTC library of a CUDA wheel or of the system, or None."""
    site = Path(sysconfig.get_paths()["purelib"])
    for path in [*sorted(site.glob("nvidia/**/libnvrtc.so*")), "libnvrtc.so"]:
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            continue
    return None


def ptx_by_nvrtc(library) -> str:
    texts = [(CSRC / name).read_bytes() for name in HEADERS]
    program = ctypes.c_void_p()
    library.nvrtcCreateProgram(
        ctypes.byref(program),
        SOURCE.encode(),
        b"formulas.cu",
        len(HEADERS),
        (ctypes.c_char_p * len(HEADERS))(*texts),
        (ctypes.c_char_p * len(HEADERS))(*(name.encode() for name in HEADERS)),
    )
    options = [*FLAGS, "--gpu-architecture=compute_80"]
    status = library.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    )
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    assert status == 0, log.value.decode()
    library.nvrtcGetPTXSize(program, ctypes.byref(size))
    ptx = ctypes.create_string_buffer(size.value)
    library.nvrtcGetPTX(program, ptx)
    return ptx.value.decode()


def ptx_by_nvcc(tmp_path) -> str:
    (tmp_path / "formulas.cu").write_text(SOURCE)
    command = ["nvcc", "-ptx", "-arch=compute_80", *FLAGS, f"-I{CSRC}", "-o", "formulas.ptx", "formulas.cu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return (tmp_path / "formulas.ptx").read_text()


def test_formulas_compile_for_a_gpu_without_inexact_arithmetic(tmp_path):
    if library := nvrtc():
        ptx = ptx_by_nvrtc(library)
    elif shutil.which("nvcc"):
        ptx = ptx_by_nvcc(tmp_path)
    else:
        pytest.skip("neither NVRTC nor nvcc is installed")
    assert ".entry formulas" in ptx
    inexact = r"\.ftz\b|\.approx\b|\bfma\.rn\.f|\b(add|sub|mul)\.f(32|64)\b|\bdiv\.full"
    assert not re.findall(inexact, ptx)


@pytest.mark.parametrize("name", HEADERS)
def test_headers_are_free_of_cpu_only_constructs(name):
    text = (CSRC / name).read_text()
    if name != "portable.h":
        assert not re.search(r"__attribute__|__builtin_|#pragma|immintrin|#include <|#ifdef|#if ", text)
