"""The JSON form of arguments that are neither a buffer nor a number: structs by value, textures and surfaces."""

from __future__ import annotations

import pytest

from kaas_core.json_form import request_from_json, request_to_json
from kaas_core.request import Access, BufferArgument, BufferSpec, Packed, PackedBuffer, TextureArgument
from kaas_core.texture import AddressMode, FilterMode, Texture
from tests.core.test_json_form import TEXTURE, one_kernel

PACKED = {
    "packed": "AAECAwAAAAAAAAAAAAAAAAAAAAD/",
    "buffers": [[8, {"name": "y", "size": 16, "key": "k"}, "io"], [0, "x", "i"]],
}


@pytest.mark.parametrize(
    "fields", [{"arguments": [["x", "i"], [PACKED, "p"]]}, {"arguments": ["x", PACKED], "type_list": ["i", "p"]}]
)
def test_packed_arguments(fields: dict[str, object]) -> None:
    request = request_from_json(one_kernel(**fields) | {"buffers": [{"name": "x", "size": 4}]})
    packed = Packed(
        b"\0\1\2\3" + bytes(16) + b"\xff",
        (PackedBuffer(8, BufferArgument("y", Access.INOUT)), PackedBuffer(0, BufferArgument("x", Access.INPUT))),
    )
    assert request.kernels[0].arguments == (BufferArgument("x", Access.INPUT), packed)
    assert request.buffers == (BufferSpec("x", 4), BufferSpec("y", 16, key="k"))
    assert request_to_json(request)["kernels"][0]["arguments"][1] == [  # type: ignore[index]
        PACKED | {"buffers": [[8, "y", "io"], [0, "x", "i"]]},
        "p",
    ]


def test_textures() -> None:
    full = TEXTURE | {
        "channels": 2,
        "extent": [1, 2],
        "address_mode": "mirror",
        "filter_mode": "point",
        "normalized_coordinates": True,
    }
    request = request_from_json(one_kernel(arguments=[[TEXTURE, "i"], [full | {"texture": "x"}, "i"]]))
    assert request.kernels[0].arguments == (
        TextureArgument("x", Access.INPUT, Texture("uint8", 1, (4,))),
        TextureArgument("x", Access.INPUT, Texture("uint8", 2, (1, 2), 0, AddressMode.MIRROR, FilterMode.POINT, True)),
    )
    request = request_from_json(one_kernel(arguments=[TEXTURE | {"extent": [1, 2], "layers": 2}], type_list=["t"]))
    assert request.kernels[0].arguments == (TextureArgument("x", Access.TEMPORARY, Texture("uint8", 1, (1, 2), 2)),)
    assert request.buffers[0].ephemeral
    assert request_to_json(request)["kernels"][0]["arguments"] == [  # type: ignore[index]
        [{"texture": "x", "dtype": "uint8", "extent": [1, 2], "layers": 2}, "t"]
    ]
