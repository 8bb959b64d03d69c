"""Build of the compiled core; pyproject.toml has the rest of the package's metadata.

``src_c/kernels.c`` is compiled once for each element type and instruction set, ``src_c/bfloat16.c``
once for each instruction set. One set is chosen at import, so a wheel runs on other machines than
the one that built it. OpenMP is
used if the compiler supports it; ``FASTRNN_OPENMP=0`` builds without it. Apple's Clang needs
Homebrew's libomp, or another one in ``LIBOMP_ROOT``.

Only 64-bit little-endian platforms are supported; others are refused (src_c/fastrnn.h).

``FASTRNN_DEBUG=1`` builds with Cython's bounds checks and the hooks of src_c/debug.h: new memory
holds NaN, and allocations can be made to fail. ``FASTRNN_SANITIZE=address,undefined`` or
``=thread`` builds with these sanitizers of GCC or Clang, and with the hooks; .ci/sanitize runs the
tests with such builds. A build with other switches than the last one recompiles everything.
"""

import os
import runpy
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if sys.maxsize < 2**32 or sys.byteorder != "little":  # src_c/fastrnn.h refuses it, too
    bits = 64 if sys.maxsize > 2**32 else 32
    sys.exit(f"this Python is {bits}-bit, {sys.byteorder}-endian; expected 64-bit, little-endian")

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

MODULES = [path.stem for path in sorted(Path("fastrnn/_core").glob("*.pyx"))]
X86_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"],
}
BF16_FLAGS = [*X86_FLAGS["avx512"], "-mavx512bf16"]
SANITIZE = os.environ.get("FASTRNN_SANITIZE", "")
DEBUG = os.environ.get("FASTRNN_DEBUG", "0") == "1" or bool(SANITIZE)
MSVC = sys.platform == "win32" and "GCC" not in sys.version
# These programs tell what the compiler can do, which is not always what this machine can: a build
# may be for another processor, or on macOS for two at once.
X86_PROBE = """
#if !defined(__x86_64__)
#error "not for x86-64"
#endif
int main(void) { return 0; }
"""
EMPTY_PROBE = "int main(void) { return 0; }\n"
OPENMP_PROBE = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
# flags of the compiler and of the linker; Apple's Clang takes OpenMP's runtime from elsewhere
OPENMP_FLAGS = [(["/openmp"], [])] if MSVC else [(["-fopenmp"], ["-fopenmp"])]
if sys.platform == "darwin":
    OPENMP_FLAGS += [
        (["-Xpreprocessor", "-fopenmp", f"-I{root}/include"], [f"-L{root}/lib", "-lomp"])
        for root in (
            os.environ.get("LIBOMP_ROOT"),
            "/opt/homebrew/opt/libomp",
            "/usr/local/opt/libomp",
        )
        if root
    ]
# compiled into the core (src_c/dispatch.c), so that the next build can compare its switches
SWITCHES = "_".join(
    [
        SANITIZE.replace(",", "_") or ("debug" if DEBUG else "release"),
        *(["serial"] if os.environ.get("FASTRNN_OPENMP") == "0" else []),
    ]
)
HEADERS = [str(path) for path in sorted(Path("src_c").glob("*.h"))]


class build_core(build_ext):
    """build_ext with the variants of the kernels and a test for OpenMP."""

    def finalize_options(self):
        super().finalize_options()
        # compile on all processors, unless --parallel says otherwise
        if not self.parallel:
            has_affinity = hasattr(os, "sched_getaffinity")
            self.parallel = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        built = Path(self.get_ext_fullpath("fastrnn._core.runtime"))
        mark = f"fastrnn built as {SWITCHES};".encode()
        if built.is_file() and mark not in built.read_bytes():
            self.force = True

    def build_extensions(self):
        # -std=c11 alone disables fused multiply-add, which the kernels need
        strict = ["/O2", "/std:c11"] if MSVC else ["-O3", "-std=c11", "-Wno-psabi"]
        if not MSVC:
            strict += ["-ffp-contract=fast", "-fno-math-errno"]
        # Python's own flags often have -g, with which the core is five times as large
        plain = [] if MSVC or "-g" in os.environ.get("CFLAGS", "").split() else ["-g0"]
        plain += [] if MSVC else ["-fvisibility=hidden"]
        sanitize = [f"-fsanitize={SANITIZE}"] if SANITIZE else []
        if "undefined" in SANITIZE:
            sanitize += ["-fno-sanitize-recover=undefined"]  # abort at the first error
        hooks = [("FRN_DEBUG", None)] if DEBUG else []
        debug = ["-O1", "-g", "-fno-omit-frame-pointer", *sanitize] if DEBUG and not MSVC else []
        strict += [*plain, *debug]
        openmp, openmp_libraries = self.openmp_flags()
        x86 = not MSVC and self.links(X86_PROBE, X86_FLAGS["avx512"], [])
        bf16 = x86 and self.links(X86_PROBE, BF16_FLAGS, [])

        kernel_flags = list(strict)
        # Before registers are allotted, GCC for arm64 moves loads up in the loop of a tile, which
        # then has no registers left for all of its sums.
        if not MSVC and self.links(EMPTY_PROBE, ["-fno-schedule-insns", "-Werror"], []):
            kernel_flags.append("-fno-schedule-insns")

        def compile_kernels(variant):
            source, name, macros, flags = variant
            return self.compiler.compile(
                [source],
                output_dir=str(Path(self.build_temp, name.lstrip("_"))),
                macros=[("FRN_VARIANT", name), *macros, *hooks],
                include_dirs=["src_c"],
                depends=[source, *HEADERS],
                extra_postargs=[*kernel_flags, *flags],
            )

        isas = X86_FLAGS if x86 else {"baseline": []}
        double = [("REAL_IS_DOUBLE", None)]
        variants = []
        for isa, flags in isas.items():
            variants += [
                ("src_c/kernels.c", f"_f32_{isa}", [], flags),
                ("src_c/kernels.c", f"_f64_{isa}", double, flags),
                ("src_c/bfloat16.c", f"_{isa}", [], flags),
            ]
        if bf16:
            variants.append(("src_c/bfloat16.c", "_avx512_bf16", [], BF16_FLAGS))
        with ThreadPoolExecutor(self.parallel) as pool:
            objects = [o for made in pool.map(compile_kernels, variants) for o in made]
        objects += self.compiler.compile(
            ["src_c/dispatch.c", "src_c/team.c"],
            output_dir=self.build_temp,
            macros=[
                ("FRN_SWITCHES", SWITCHES),
                *([("FRN_X86_VARIANTS", None)] if x86 else []),
                *([("FRN_AVX512_BF16", None)] if bf16 else []),
                *hooks,
            ],
            include_dirs=["src_c"],
            depends=["src_c/dispatch.c", "src_c/team.c", *HEADERS],
            extra_postargs=strict,
        )
        for extension in self.extensions:
            # linked into one module only, from which the others import the table of kernels
            if extension.name.endswith(".runtime"):
                extension.extra_objects = objects
            extension.define_macros += hooks
            extension.extra_compile_args = [strict[0], *plain, *debug, *openmp]
            extension.extra_link_args = [*openmp_libraries, *sanitize]
        super().build_extensions()

    def openmp_flags(self):
        """Return the flags to compile and to link an OpenMP program, both [] if none works."""
        if os.environ.get("FASTRNN_OPENMP") != "0":
            for flags, libraries in OPENMP_FLAGS:
                if self.links(OPENMP_PROBE, flags, libraries):
                    return flags, libraries
            print("no OpenMP with this compiler: one thread", file=sys.stderr)
        return [], []

    def links(self, program, flags, libraries):
        """Whether a C program can be compiled and linked; it is not run."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile(
                    [str(source)], output_dir=folder, extra_postargs=flags
                )
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=libraries
                )
            except Exception as error:
                print(f"without {flags}: {error}", file=sys.stderr)
                return False
        return True


runpy.run_path("src_c/generate_pxd.py", run_name="__main__")
setup(
    cmdclass={"build_ext": build_core},
    ext_modules=cythonize(
        [
            Extension(
                f"fastrnn._core.{name}",
                [f"fastrnn/_core/{name}.pyx"],
                include_dirs=["src_c", np.get_include()],
                define_macros=[
                    ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
                    ("NPY_TARGET_VERSION", "NPY_1_22_API_VERSION"),
                ],
                depends=[*HEADERS, *map(str, sorted(Path("src_c").glob("*.c")))],
            )
            for name in MODULES
        ],
        # a separate directory, because Cython does not recompile if only the directives change
        build_dir="build/debug" if DEBUG else None,
        language_level=3,
        compiler_directives={
            "boundscheck": DEBUG,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": DEBUG,
            "nonecheck": DEBUG,
            "embedsignature": True,
            # keep the GIL of a free-threaded interpreter disabled when the core is imported
            "freethreading_compatible": True,
        },
    ),
)
