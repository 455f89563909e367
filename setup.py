"""What pyproject.toml cannot say: the server's mean, compiled where there is a C compiler; without, torch does it."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "fedfms.methods._mean",
            ["custom/fedfms/methods/_mean.c"],
            extra_compile_args=["-O3", "-ffp-contract=fast"],
            optional=True,
        )
    ]
)
