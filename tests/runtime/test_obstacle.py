"""Foreign errors on one line: what libraries say, without where in their sources they say it. The texts are onnxruntime-gpu 1.31.1's."""

import pytest

from vit_runtime.obstacle import one_line

pytestmark = pytest.mark.unit

CALL = "std::conditional_t<THRW, void, onnxruntime::common::Status> onnxruntime::CudaCall(ERRTYPE, const char*, const char*, SUCCTYPE, int)"
WITH = "[with ERRTYPE = cudaError; bool THRW = true; SUCCTYPE = cudaError; std::conditional_t<THRW, void, common::Status> = void]"
WHERE = "; GPU=-1 ; hostname=somewhere ; file=/onnxruntime_src/onnxruntime/core/providers/cuda/cuda_execution_provider.cc ; line=355 ;"
SAID = "CUDA failure 36: API call is not supported in the installed CUDA driver"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (f"/onnxruntime_src/cuda_call.cc:154 {CALL} {WITH} {SAID} {WHERE} expr=cudaSetDevice(info_.device_id); \n\n", SAID),
        (f'[ONNXRuntimeError] : 1 : FAIL : provider_options_utils.h:187 Parse Failed to parse "device_id": {SAID} {WHERE}', SAID),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h ;", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED"),
        ("[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got invalid\ndimensions.", "Got invalid dimensions"),
        ("", "RuntimeError"),
    ],
)
def test_an_error_is_what_it_says(text: str, line: str):
    assert one_line(RuntimeError(text)) == line


def test_a_long_one_is_cut():
    assert len(one_line("word " * 100)) <= 240
    assert len(one_line("CUDA failure 2: " + "word " * 100)) <= 240
