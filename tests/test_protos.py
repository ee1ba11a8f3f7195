"""The generated code says what etcd says: every message, field, enum and method, nothing else."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    ServiceDescriptorProto,
)

from aioetcd._transport import methods
from aioetcd._transport.methods import Method

FACTS = json.loads((Path(__file__).parent / "data" / "etcd_api.json").read_text())
OURS = "aioetcd."
ROWS = [row for row in vars(methods).values() if isinstance(row, Method)]
FILES = ("auth", "election", "health", "kv", "lock", "rpc")
HEALTH = "health.v1."
HEALTH_SERVICE = {
    "Check": ("HealthCheckRequest", "HealthCheckResponse", False, False),
    "Watch": ("HealthCheckRequest", "HealthCheckResponse", False, True),
}


def messages_module(file: str) -> ModuleType:
    """The generated module of a file's messages."""
    return importlib.import_module(f"aioetcd._proto.{file}_pb2")


def stubs_module(file: str) -> ModuleType:
    """The generated module of a file's service stubs."""
    return importlib.import_module(f"aioetcd._proto.{file}_pb2_grpc")


def file_proto(file: str) -> FileDescriptorProto:
    """What a file declares; unlike descriptors, alike in all versions of protobuf."""
    return FileDescriptorProto.FromString(messages_module(file).DESCRIPTOR.serialized_pb)


def etcd_name(type_name: str) -> str:
    """`aioetcd.mvccpb.KeyValue`, with or without a dot before it, as etcd names it."""
    name = type_name.removeprefix(".")
    assert name.startswith(OURS)
    return name.removeprefix(OURS)


class Generated:
    """All that the generated modules declare, by etcd's full names."""

    def __init__(self) -> None:
        self.messages: dict[str, DescriptorProto] = {}
        self.enums: dict[str, EnumDescriptorProto] = {}
        self.services: dict[str, ServiceDescriptorProto] = {}
        for file in FILES:
            proto = file_proto(file)
            package = etcd_name(proto.package)
            for enum in proto.enum_type:
                self.enums[f"{package}.{enum.name}"] = enum
            for service in proto.service:
                self.services[f"{package}.{service.name}"] = service
            for message in proto.message_type:
                self._add_message(f"{package}.{message.name}", message)

    def _add_message(self, name: str, message: DescriptorProto) -> None:
        self.messages[name] = message
        for enum in message.enum_type:
            self.enums[f"{name}.{enum.name}"] = enum
        for nested in message.nested_type:
            self._add_message(f"{name}.{nested.name}", nested)


GENERATED = Generated()


def field_facts(message: DescriptorProto, field: FieldDescriptorProto) -> dict[str, Any]:
    """A generated field in the words of the facts."""
    assert not field.proto3_optional
    assert field.label != FieldDescriptorProto.LABEL_REQUIRED
    facts: dict[str, Any] = {"number": field.number}
    if field.type_name:
        facts["type"] = etcd_name(field.type_name)
    else:
        facts["type"] = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        facts["repeated"] = True
    if field.HasField("oneof_index"):
        facts["oneof"] = message.oneof_decl[field.oneof_index].name
    return facts


def method_facts(service: ServiceDescriptorProto) -> dict[str, dict[str, Any]]:
    """A generated service's methods in the words of the facts."""
    return {
        method.name: {
            "request": etcd_name(method.input_type),
            "response": etcd_name(method.output_type),
            "client_streaming": method.client_streaming,
            "server_streaming": method.server_streaming,
        }
        for method in service.method
    }


def without_since(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that generated code can hold."""
    return {key: value for key, value in facts.items() if key != "since"}


def is_of_etcd(name: str) -> bool:
    """Whether a name is of etcd's own API, not of the health service beside it."""
    return not name.startswith(HEALTH)


class RecordingChannel:
    """Takes the place of a channel and keeps what a stub asks of it; nothing is ever sent."""

    def __init__(self) -> None:
        self.calls: dict[str, tuple[str, Any, Any]] = {}

    def _record(
        self, kind: str, path: str, request_serializer: Any, response_deserializer: Any
    ) -> str:
        assert path not in self.calls
        self.calls[path] = (kind, request_serializer, response_deserializer)
        return path

    def unary_unary(self, path: str, **codec: Any) -> str:
        return self._record("unary_unary", path, **codec)

    def unary_stream(self, path: str, **codec: Any) -> str:
        return self._record("unary_stream", path, **codec)

    def stream_unary(self, path: str, **codec: Any) -> str:
        return self._record("stream_unary", path, **codec)

    def stream_stream(self, path: str, **codec: Any) -> str:
        return self._record("stream_stream", path, **codec)


class RecordingServer:
    """Takes the place of a server and keeps the names under which services are added to it."""

    def __init__(self) -> None:
        self.services: list[str] = []

    def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
        self.services.extend(handler.service_name() for handler in handlers)


class AnyServicer:
    """Has every method, as far as registering it needs."""

    def __getattr__(self, name: str) -> object:
        return lambda request, context: None


def wire_services(file: str) -> dict[str, ServiceDescriptorProto]:
    """The services of a file by the names that they have on the wire."""
    proto = file_proto(file)
    package = etcd_name(proto.package)
    if not is_of_etcd(f"{package}."):
        package = f"grpc.{package}"
    return {f"{package}.{service.name}": service for service in proto.service}


def message_class(type_name: str) -> Any:
    """The generated class of `.aioetcd.<package>.<message>`."""
    for file in FILES:
        module = messages_module(file)
        package, _, name = type_name.removeprefix(".").rpartition(".")
        if module.DESCRIPTOR.package == package:
            return getattr(module, name)
    raise AssertionError(type_name)


@pytest.mark.parametrize("file", FILES)
def test_files_keep_out_of_other_packages_names(file: str) -> None:
    """Paths and packages are our own, so another package of etcd's messages may be loaded too."""
    proto = file_proto(file)
    assert proto.name == f"aioetcd/_proto/{file}.proto"
    assert proto.package.startswith(OURS)
    assert proto.syntax == "proto3"
    assert all(path.startswith("aioetcd/_proto/") for path in proto.dependency)


def test_messages_enums_and_services_are_etcds() -> None:
    """No message, enum or service of etcd's API is missing, and there is none beside them."""
    assert set(filter(is_of_etcd, GENERATED.messages)) == set(FACTS["messages"])
    assert set(filter(is_of_etcd, GENERATED.enums)) == set(FACTS["enums"])
    assert set(filter(is_of_etcd, GENERATED.services)) == set(FACTS["services"])


@pytest.mark.parametrize("name", FACTS["messages"])
def test_message_has_etcds_fields(name: str) -> None:
    """Every field has etcd's name, number, type, label and oneof; none is missing or extra."""
    message = GENERATED.messages[name]
    expected = {
        field: without_since(facts) for field, facts in FACTS["messages"][name]["fields"].items()
    }
    assert {field.name: field_facts(message, field) for field in message.field} == expected
    assert {oneof.name for oneof in message.oneof_decl} == {
        facts["oneof"] for facts in expected.values() if "oneof" in facts
    }


@pytest.mark.parametrize("name", FACTS["enums"])
def test_enum_has_etcds_values(name: str) -> None:
    """Every value has etcd's name and number; none is missing or extra."""
    values = {value.name: value.number for value in GENERATED.enums[name].value}
    assert values == FACTS["enums"][name]["values"]


@pytest.mark.parametrize("name", FACTS["services"])
def test_service_has_etcds_methods(name: str) -> None:
    """Every method has etcd's name, messages and kind of streaming; none is missing or extra."""
    expected = {method: without_since(facts) for method, facts in FACTS["services"][name].items()}
    assert method_facts(GENERATED.services[name]) == expected


def test_health_is_grpcs_health_service() -> None:
    """The health service has the names and numbers of gRPC's health checking protocol."""
    request = GENERATED.messages[HEALTH + "HealthCheckRequest"]
    response = GENERATED.messages[HEALTH + "HealthCheckResponse"]
    status = HEALTH + "HealthCheckResponse.ServingStatus"
    assert {f.name: field_facts(request, f) for f in request.field} == {
        "service": {"number": 1, "type": "string"}
    }
    assert {f.name: field_facts(response, f) for f in response.field} == {
        "status": {"number": 1, "type": status}
    }
    assert {value.name: value.number for value in GENERATED.enums[status].value} == {
        "UNKNOWN": 0,
        "SERVING": 1,
        "NOT_SERVING": 2,
        "SERVICE_UNKNOWN": 3,
    }
    assert method_facts(GENERATED.services[HEALTH + "Health"]) == {
        name: {
            "request": HEALTH + request_name,
            "response": HEALTH + response_name,
            "client_streaming": client_streaming,
            "server_streaming": server_streaming,
        }
        for name, (
            request_name,
            response_name,
            client_streaming,
            server_streaming,
        ) in HEALTH_SERVICE.items()
    }


def test_wire_names_are_those_of_the_servers() -> None:
    """The services go by etcd's and gRPC's own names on the wire, not by ours."""
    names = {name for file in FILES for name in wire_services(file)}
    assert names == {*FACTS["services"], "grpc.health.v1.Health"}


@pytest.mark.parametrize("file", FILES)
def test_stubs_call_the_servers_paths(file: str) -> None:
    """Each stub calls its methods' wire paths, with their kind of streaming and their messages."""
    module = stubs_module(file)
    services = wire_services(file)
    stubs = {name for name in vars(module) if name.endswith("Stub")}
    assert stubs == {f"{service.name}Stub" for service in services.values()}
    for wire_name, service in services.items():
        channel = RecordingChannel()
        stub = getattr(module, f"{service.name}Stub")(channel)
        paths = {method.name: f"/{wire_name}/{method.name}" for method in service.method}
        assert vars(stub) == paths
        assert set(channel.calls) == set(paths.values())
        for method in service.method:
            kind, serializer, deserializer = channel.calls[paths[method.name]]
            sends = "stream" if method.client_streaming else "unary"
            receives = "stream" if method.server_streaming else "unary"
            assert kind == f"{sends}_{receives}"
            assert serializer is message_class(method.input_type).SerializeToString
            assert type(deserializer(b"")) is message_class(method.output_type)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.path)
def test_rows_are_those_of_the_stubs(row: Method[Any, Any]) -> None:
    """The transport calls no stub: its rows have the stubs' paths and messages."""
    calls: dict[str, Any] = {}
    for file in FILES:
        for service in wire_services(file).values():
            channel = RecordingChannel()
            getattr(stubs_module(file), f"{service.name}Stub")(channel)
            calls |= channel.calls
    _, serializer, deserializer = calls[row.path]
    assert row.request.SerializeToString is serializer
    assert row.response is type(deserializer(b""))
    assert row.path.endswith(f"/{row.name}")


@pytest.mark.parametrize("file", FILES)
def test_servicers_answer_on_the_servers_names(file: str) -> None:
    """A server made from the generated code serves the wire names, too."""
    services = wire_services(file)
    server = RecordingServer()
    for service in services.values():
        add = getattr(stubs_module(file), f"add_{service.name}Servicer_to_server")
        add(AnyServicer(), server)
    assert sorted(server.services) == sorted(services)
