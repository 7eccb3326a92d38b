"""Stub CUDA libraries that pretend one GPU, so that a real onnxruntime-gpu builds CUDA sessions where there is none.

The memory of the GPU is the machine's own; copies are done, and whatever computes does nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from catonnx.ops.build import find_compiler
from tests.ops.native import run

PROVIDER = "libonnxruntime_providers_cuda.so"

HEAD = """
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
static int allocated;
int allocations(void) { return allocated; }
"""

PROPERTIES = """
struct properties {  /* the beginning of cudaDeviceProp in CUDA 13 */
  char name[256], uuid[16], luid[8];
  unsigned mask;
  size_t total, shared;
  int registers, warp;
  size_t pitch;
  int threads, block[3], grid[3];
  size_t constant;
  int major, minor;
  size_t alignment, texture_pitch;
  int processors;
};
"""

BODIES = {
    "cudaGetDeviceCount": "int F(int* n) { *n = 1; return 0; }",
    "cudaGetDevice": "int F(int* n) { *n = 0; return 0; }",
    "cudaDriverGetVersion": "int F(int* n) { *n = 13000; return 0; }",
    "cudaRuntimeGetVersion": "int F(int* n) { *n = 13000; return 0; }",
    "cudaGetDeviceProperties": PROPERTIES
    + """int F(struct properties* p) {
  memset(p, 0, sizeof *p);
  strcpy(p->name, "stub");
  p->total = (size_t)1 << 32, p->shared = 49152, p->registers = 65536, p->warp = 32, p->threads = 1024;
  p->block[0] = p->block[1] = 1024, p->block[2] = 64, p->grid[0] = 2147483647, p->grid[1] = p->grid[2] = 65535;
  p->major = 8, p->minor = 6, p->processors = 4;
  return 0;
}""",
    "cudaDeviceGetAttribute": """int F(int* v, int which) {
  *v = which == 75 ? 8 : which == 76 ? 6 : which == 16 ? 4 : which == 97 ? 101376 : 0;
  return 0;
}""",
    "cudaMemGetInfo": "int F(size_t* a, size_t* b) { *a = *b = (size_t)1 << 32; return 0; }",
    "cudaGetErrorString": 'const char* F(int e) { return "stub"; }',
    "cudaGetErrorName": 'const char* F(int e) { return "stub"; }',
    "cublasGetStatusName": 'const char* F(int e) { return "stub"; }',
    "cublasGetStatusString": 'const char* F(int e) { return "stub"; }',
    "cudaMemcpy": "int F(void* a, const void* b, size_t n) { memcpy(a, b, n); return 0; }",
    "cudaMemcpyAsync": "int F(void* a, const void* b, size_t n) { memcpy(a, b, n); return 0; }",
    "cudaMemset": "int F(void* a, int v, size_t n) { memset(a, v, n); return 0; }",
    "cudaMemsetAsync": "int F(void* a, int v, size_t n) { memset(a, v, n); return 0; }",
    "cudaFree": "int F(void* p) { free(p); return 0; }",
    "cudaFreeAsync": "int F(void* p) { free(p); return 0; }",
    "cudaFreeHost": "int F(void* p) { free(p); return 0; }",
    "cudaStreamEndCapture": "int F(void* s, void** p) { static char one; *p = &one; return 0; }",
    "cudaStreamIsCapturing": "int F(void* s, int* v) { *v = 0; return 0; }",
    "cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags": "int F(int* n) { *n = 1; return 0; }",
}
_ALLOCATES = (
    "int F(void** p, size_t n) { ++allocated; *p = aligned_alloc(256, (n + 255) / 256 * 256 + 256); return 0; }"
)
BODIES |= dict.fromkeys(("cudaMalloc", "cudaMallocHost", "cudaHostAlloc", "cudaMallocFromPoolAsync"), _ALLOCATES)
_MAKES = "int F(void** p) { static char one[4096]; *p = one; return 0; }"
BODIES |= dict.fromkeys(
    (
        *("cudaStreamCreate", "cudaStreamCreateWithFlags", "cudaEventCreate", "cudaEventCreateWithFlags"),
        *("cublasCreate_v2", "cublasLtCreate", "cudaMemPoolCreate", "cudaGraphInstantiate"),
    ),
    _MAKES,
)
BODIES["__cudaRegisterFatBinary"] = "void** F(void* p) { static void* one[512]; return one; }"


def write_stubs(capi: Path, folder: Path) -> None:
    """Write into `folder` what the CUDA provider in `capi` (of an onnxruntime-gpu) links with."""
    provider = capi / PROVIDER
    needed = re.findall(r"NEEDED.*\[(libcu\S+)\]", run(["readelf", "-d", str(provider)]))
    symbols = re.findall(r" U (cu\w+|__cuda\w+)(?:@(\S+))?$", run(["nm", "-D", "-u", str(provider)]), re.MULTILINE)
    for library in needed:
        own = [name for name, of in symbols if of == library or (not of and library.startswith("libcuda.so"))]
        _write(library, own, folder)


def _write(library: str, symbols: Iterable[str], folder: Path) -> None:
    functions = [BODIES.get(name, "int F(void) { return 0; }").replace(" F(", f" {name}(") for name in symbols]
    source, versions = folder / f"{library}.c", folder / f"{library}.map"
    source.write_text("\n".join([HEAD, *functions, ""]), encoding="utf-8")
    versions.write_text(f"{library} {{ global: *; }};\n", encoding="utf-8")
    language = ["-x", "c", "-w", "-O1", "-fPIC", "-fno-builtin", "-shared", str(source)]
    linked = [f"-Wl,-soname,{library}", f"-Wl,--version-script={versions}", "-o", str(folder / library)]
    run([*find_compiler(), *language, *linked])
