import shutil
import threading
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info

from deepclust import runtime
from deepclust.runtime import Purpose, Runtime, generator, resolve, resolve_seed, single_threaded

CPU = torch.device("cpu")


@pytest.fixture
def fake_cuda(monkeypatch):
    """Let torch claim to have a CUDA device with or without bfloat16."""

    def claim(*, bfloat16):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch, "empty", lambda *size, device: None)

        def is_bf16_supported(including_emulation=True):
            return bfloat16 or including_emulation

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)

    return claim


@pytest.fixture
def processor(monkeypatch):
    """Let the processor have the named capabilities."""

    def claim(*names):
        have = dict.fromkeys(names, True) | {"avx2": True}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: have, raising=False)

    return claim


class TestResolve:
    def test_the_processor_is_taken_where_there_is_nothing_better(self, monkeypatch, processor):
        processor()
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert resolve() == Runtime(CPU, torch.float32, compile=False)

    def test_a_cuda_device_is_taken_when_there_is_one(self, fake_cuda):
        fake_cuda(bfloat16=True)
        assert resolve() == Runtime(torch.device("cuda"), torch.bfloat16)
        assert resolve("cpu").device == CPU

    def test_emulated_bfloat16_is_none(self, fake_cuda):
        fake_cuda(bfloat16=False)
        assert resolve().dtype == torch.float32

    @pytest.mark.parametrize(
        ("capabilities", "dtype"),
        [
            ((), torch.float32),
            (("avx512",), torch.float32),
            (("avx512_bf16",), torch.bfloat16),
            (("amx_bf16",), torch.bfloat16),
        ],
    )
    def test_bfloat16_where_the_processor_multiplies_it(self, processor, capabilities, dtype):
        processor(*capabilities)
        assert resolve("cpu").dtype == dtype

    @pytest.mark.parametrize(("answer", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
    def test_an_older_torch_is_asked_in_its_own_way(self, monkeypatch, answer, dtype):
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
        name = "_is_avx512_bf16_supported"
        monkeypatch.setattr(torch.cpu, name, lambda: answer, raising=False)
        assert resolve("cpu").dtype == dtype
        monkeypatch.delattr(torch.cpu, name)
        assert resolve("cpu").dtype == torch.float32

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    @pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
    def test_what_was_asked_for_is_taken(self, device, precision):
        assert resolve(device, precision) == Runtime(CPU, getattr(torch, precision))

    @pytest.mark.parametrize("compile", [True, False, np.True_, np.False_])
    def test_compile_is_a_bool(self, compile):
        assert resolve("cpu", compile=compile).compile is bool(compile)

    @pytest.mark.parametrize("precision", ["float16", "bf16", "", None, torch.float32])
    def test_unknown_precision(self, precision):
        message = r"precision=.* is not one of 'auto', 'float32', 'bfloat16'"
        with pytest.raises(ValueError, match=message):
            resolve("cpu", precision)

    @pytest.mark.parametrize("compile", ["yes", 1, None])
    def test_unknown_compile(self, compile):
        with pytest.raises(ValueError, match=r"compile=.* is not True or False"):
            resolve("cpu", compile=compile)

    @pytest.mark.parametrize("device", ["gpu", "cpu:x", "", "cuda:987", "xpu:987", 987, object()])
    def test_devices_that_are_not_there(self, device):
        message = r"device='.*' cannot be used here \(.+\); pass device='cpu' or 'auto'"
        with pytest.raises(ValueError, match=message):
            resolve(device)


class TestSeeds:
    @pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)])
    def test_an_integer_is_the_seed(self, seed):
        assert resolve_seed(seed) == seed
        assert type(resolve_seed(seed)) is int

    @pytest.mark.parametrize("make", [np.random.RandomState, np.random.default_rng])
    def test_a_generator_is_drawn_from(self, make):
        first, again, other = make(0), make(0), make(1)
        seeds = [resolve_seed(first) for _ in range(20)]
        assert seeds == [resolve_seed(again) for _ in range(20)]
        assert resolve_seed(other) not in seeds
        assert len(set(seeds)) == 20
        assert all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
        assert max(seeds) > 2**31  # all 32 bits are used

    def test_none_is_something_new_each_time(self):
        seeds = {resolve_seed(None) for _ in range(20)}
        assert len(seeds) == 20
        assert all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)

    def test_no_global_generator_takes_part(self):
        legacy = np.random.mtrand._rand
        numpy_state, torch_state = legacy.get_state(), torch.random.get_rng_state()
        for random_state in (None, 3, np.random.default_rng(0), np.random.RandomState(0)):
            resolve_seed(random_state)
        generator(0, 0, Purpose.ORDER).random(10)
        for now, before in zip(legacy.get_state(), numpy_state, strict=True):
            assert np.array_equal(now, before)
        assert torch.equal(torch.random.get_rng_state(), torch_state)

    @pytest.mark.parametrize(
        "random_state", [-1, 2**32, True, np.False_, 0.0, "0", [0], np.array([1]), np.random]
    )
    def test_anything_else_is_refused(self, random_state):
        message = r"random_state=.* cannot seed a fit; pass an integer in \[0, 2\*\*32\)"
        with pytest.raises(ValueError, match=message):
            resolve_seed(random_state)


class TestGenerator:
    keys = tuple(product([0, 1, 2**32 - 1], [0, 1, 100], Purpose, [0, 1, 10**6]))

    def test_the_same_key_gives_the_same_stream(self):
        for key in self.keys:
            assert np.array_equal(generator(*key).random(3), generator(*key).random(3))

    def test_every_other_key_gives_another(self):
        streams = {generator(*key).bytes(16) for key in self.keys}
        assert len(streams) == len(self.keys) == 3 * 3 * 4 * 3

    def test_index_counts_from_zero(self):
        first = generator(5, 1, Purpose.DROPOUT).random()
        assert first == generator(5, 1, Purpose.DROPOUT, 0).random()

    def test_streams_stay_the_same_from_version_to_version(self):
        # Results recorded with a seed can only be had again if its streams do not move.
        drawn = generator(0, 1, Purpose.ORDER, 2).integers(1000, size=4)
        spawned = np.random.SeedSequence(0).spawn(2)[1].spawn(2)[1].spawn(3)[2]
        expected = np.random.Generator(np.random.PCG64(spawned)).integers(1000, size=4)
        assert drawn.tolist() == expected.tolist()


class TestSingleThreaded:
    @staticmethod
    def openmp_threads():
        import sklearn.cluster  # noqa: F401  (its OpenMP is loaded)

        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "openmp"]

    @pytest.fixture(autouse=True)
    def _two_threads(self):
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        yield
        torch.set_num_threads(before)

    def test_within_and_restored_afterwards(self):
        before = self.openmp_threads()
        assert max(before) > 1
        with single_threaded():
            assert set(self.openmp_threads()) == {1}
        assert self.openmp_threads() == before

    def test_restored_after_an_error(self):
        before = self.openmp_threads()
        with pytest.raises(ZeroDivisionError), single_threaded():
            raise ZeroDivisionError
        assert self.openmp_threads() == before

    def test_other_threads_keep_theirs(self):
        def elsewhere():
            seen = []
            thread = threading.Thread(target=lambda: seen.extend(self.openmp_threads()))
            thread.start()
            thread.join()
            return seen

        before = elsewhere()
        with single_threaded():
            assert elsewhere() == before


class TestAutocast:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_matrix_products_in_the_precision_of_the_runtime(self, dtype):
        x = torch.ones(2, 2)
        with Runtime(CPU, dtype).autocast():
            assert (x @ x).dtype == dtype
            assert (x + x).dtype == torch.float32
        assert (x @ x).dtype == torch.float32
        assert not torch.is_autocast_enabled("cpu")

    def test_float32_holds_within_the_user_s_own_autocast(self):
        x = torch.ones(2, 2)
        with torch.autocast("cpu", torch.bfloat16):
            with Runtime(CPU).autocast():
                assert (x @ x).dtype == torch.float32
            assert (x @ x).dtype == torch.bfloat16


def squares(x, y):
    """A small step to compile."""
    return (torch.relu(x) - y).square().mean()


class TestCompiled:
    x, y = torch.linspace(-1, 1, 12).reshape(3, 4), torch.linspace(0, 1, 12).reshape(3, 4)

    @staticmethod
    def failure():
        return torch._dynamo.exc.BackendCompilerFailed(
            lambda: None, RuntimeError("no compiler\nsecond line"), None
        )

    def test_off_is_the_step_itself(self):
        assert Runtime(CPU).compiled(squares) is squares

    def test_the_compiled_step_is_used(self, monkeypatch):
        calls = []

        def compile(step):
            def fast(*args):
                calls.append(step)
                return step(*args) + 1

            return fast

        monkeypatch.setattr(torch, "compile", compile)
        step = Runtime(CPU, compile=True).compiled(squares)
        for _ in range(3):
            assert torch.equal(step(self.x, self.y), squares(self.x, self.y) + 1)
        assert calls == [squares] * 3

    def test_goes_on_without_it_after_one_warning(self, monkeypatch):
        tries = []

        def compile(step):
            def fast(*args):
                tries.append(step)
                raise self.failure()

            return fast

        monkeypatch.setattr(torch, "compile", compile)
        step = Runtime(CPU, compile=True).compiled(squares)
        with pytest.warns(
            RuntimeWarning, match=r"torch.compile failed \(.*compile=False"
        ) as caught:
            results = [step(self.x, self.y) for _ in range(3)]
        assert len(caught) == len(tries) == 1
        assert all(torch.equal(result, squares(self.x, self.y)) for result in results)

    def test_each_step_has_its_own_try(self, monkeypatch):
        def compile(step):
            def fast(*args):
                if step is squares:
                    raise self.failure()
                return step(*args)

            return fast

        monkeypatch.setattr(torch, "compile", compile)
        machine = Runtime(CPU, compile=True)
        with pytest.warns(RuntimeWarning, match="torch.compile failed"):
            machine.compiled(squares)(self.x, self.y)
        machine.compiled(torch.add)(self.x, self.y)  # no warning

    def test_errors_of_the_step_itself_are_not_swallowed(self, monkeypatch):
        def fails(x):
            raise ValueError("bad x")

        monkeypatch.setattr(torch, "compile", lambda step: step)
        with pytest.raises(ValueError, match="bad x"):
            Runtime(CPU, compile=True).compiled(fails)(self.x)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
    def test_without_a_compiler_on_the_machine(self):
        torch._dynamo.reset()
        step = Runtime(CPU, compile=True).compiled(squares)
        settings = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
        with (
            torch._inductor.config.patch(settings),
            pytest.warns(RuntimeWarning, match=r"torch.compile failed .*compiler"),
        ):
            result = step(self.x, self.y)
        assert torch.equal(result, squares(self.x, self.y))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
    @pytest.mark.skipif(
        not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler"
    )
    def test_compiled_numbers_and_gradients_are_those_of_the_plain_step(self):
        torch._dynamo.reset()
        plain, compiled = (self.x.clone().requires_grad_() for _ in range(2))
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            result = Runtime(CPU, compile=True).compiled(squares)(compiled, self.y)
        expected = squares(plain, self.y)
        torch.testing.assert_close(result, expected)
        result.backward(), expected.backward()
        torch.testing.assert_close(compiled.grad, plain.grad)


def test_purposes_keep_their_numbers():
    # They are part of the key of every stream.
    assert {purpose.name: purpose.value for purpose in runtime.Purpose} == {
        "WEIGHTS": 0,
        "ORDER": 1,
        "DROPOUT": 2,
        "CENTROIDS": 3,
    }
