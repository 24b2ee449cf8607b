"""Makes every call of the CRI that the package container-runtime-interface-api knows, and prints one line for each.

Usage: cri_client.py SOCKET LOG_DIR IMAGE. Written for the tests: a call that fails in an unforeseen way ends it.
"""

import sys
import time

import grpc
from cri_api.v1 import api_pb2 as v1
from cri_api.v1 import api_pb2_grpc as services

SOCKET, LOGS, IMAGE = sys.argv[1:4]
# grpcio would name the socket's path, percent-encoded, as the authority, which our HTTP/2 library refuses as malformed;
# kubelet and crictl say localhost.
CHANNEL = grpc.insecure_channel("unix://" + SOCKET, options=[("grpc.default_authority", "localhost")])
RUNTIME = services.RuntimeServiceStub(CHANNEL)
IMAGES = services.ImageServiceStub(CHANNEL)
DEADLINE = 60
# The number 99, with the value 1.
UNKNOWN_FIELD = b"\x98\x06\x01"
CALLED = set()


def call(name, request, stub=RUNTIME):
    """One call; its answer. Each request has a field that nobody knows, as a newer client's would."""
    request.MergeFromString(UNKNOWN_FIELD)
    assert UNKNOWN_FIELD in request.SerializeToString()
    CALLED.add(name)
    return getattr(stub, name)(request, timeout=DEADLINE)


def refused(name, request, code, stub=RUNTIME):
    """One call that must be refused with that code."""
    try:
        call(name, request, stub)
    except grpc.RpcError as error:
        assert error.code() == code, f"{name}: {error.code()}: {error.details()}"
        return
    raise AssertionError(f"{name} was not refused")


def exited(container):
    """Waits for a container's end."""
    until = time.monotonic() + DEADLINE
    while time.monotonic() < until:
        status = call("ContainerStatus", v1.ContainerStatusRequest(container_id=container)).status
        if status.state == v1.CONTAINER_EXITED:
            return status
        time.sleep(0.01)
    raise AssertionError("the container does not end")


def node():
    assert call("Version", v1.VersionRequest()).runtime_name == "coracle"
    conditions = {c.type: c.status for c in call("Status", v1.StatusRequest(verbose=True)).status.conditions}
    assert conditions["RuntimeReady"] and conditions["NetworkReady"], conditions
    call("RuntimeConfig", v1.RuntimeConfigRequest())
    network = v1.NetworkConfig(pod_cidr="")
    call("UpdateRuntimeConfig", v1.UpdateRuntimeConfigRequest(runtime_config=v1.RuntimeConfig(network_config=network)))


def images():
    spec = v1.ImageSpec(image=IMAGE)
    status = call("ImageStatus", v1.ImageStatusRequest(image=spec, verbose=True), IMAGES)
    assert status.image.repo_tags == [IMAGE], status
    listed = call("ListImages", v1.ListImagesRequest(), IMAGES).images
    assert [image.id for image in listed] == [status.image.id]
    assert call("ImageFsInfo", v1.ImageFsInfoRequest(), IMAGES).image_filesystems
    nowhere = v1.ImageSpec(image="127.0.0.1:1/none:1")
    try:
        call("PullImage", v1.PullImageRequest(image=nowhere), IMAGES)
        raise AssertionError("an image was pulled from nowhere")
    except grpc.RpcError as error:
        assert "127.0.0.1:1" in error.details(), error.details()
    call("RemoveImage", v1.RemoveImageRequest(image=nowhere), IMAGES)


def pod_config():
    metadata = v1.PodSandboxMetadata(name="py", uid="uid-py", namespace="default")
    return v1.PodSandboxConfig(
        metadata=metadata, hostname="py", log_directory=LOGS, labels={"app": "py"}, linux=v1.LinuxPodSandboxConfig()
    )


def container_config(name, script):
    return v1.ContainerConfig(
        metadata=v1.ContainerMetadata(name=name),
        image=v1.ImageSpec(image=IMAGE),
        command=["/bin/sh", "-c", script],
        log_path=name + ".log",
        linux=v1.LinuxContainerConfig(),
    )


def running(pod, config):
    """What can be asked of a running container."""
    create = v1.CreateContainerRequest(
        pod_sandbox_id=pod, config=container_config("main", "while :; do sleep 0.1; done"), sandbox_config=config
    )
    container = call("CreateContainer", create).container_id
    call("StartContainer", v1.StartContainerRequest(container_id=container))
    listed = call("ListContainers", v1.ListContainersRequest()).containers
    assert [(c.id, c.state) for c in listed] == [(container, v1.CONTAINER_RUNNING)], listed
    limits = v1.LinuxContainerResources(cpu_shares=512)
    call("UpdateContainerResources", v1.UpdateContainerResourcesRequest(container_id=container, linux=limits))
    call("ReopenContainerLog", v1.ReopenContainerLogRequest(container_id=container))
    said = call("ExecSync", v1.ExecSyncRequest(container_id=container, cmd=["sh", "-c", "echo hi; exit 3"]))
    assert (said.stdout, said.exit_code) == (b"hi\n", 3), said
    for answer in (
        call("Exec", v1.ExecRequest(container_id=container, cmd=["sh"], stdout=True)),
        call("Attach", v1.AttachRequest(container_id=container, stdout=True)),
        call("PortForward", v1.PortForwardRequest(pod_sandbox_id=pod, port=[80])),
    ):
        assert answer.url.startswith("http://127.0.0.1:"), answer.url
    stats = call("ContainerStats", v1.ContainerStatsRequest(container_id=container)).stats
    assert stats.attributes.id == container and stats.cpu.usage_core_nano_seconds.value > 0, stats
    assert len(call("ListContainerStats", v1.ListContainerStatsRequest()).stats) == 1
    assert call("PodSandboxStats", v1.PodSandboxStatsRequest(pod_sandbox_id=pod)).stats.attributes.id == pod
    assert len(call("ListPodSandboxStats", v1.ListPodSandboxStatsRequest()).stats) == 1
    assert call("ListMetricDescriptors", v1.ListMetricDescriptorsRequest()).descriptors
    assert call("ListPodSandboxMetrics", v1.ListPodSandboxMetricsRequest()).pod_metrics
    refused("CheckpointContainer", v1.CheckpointContainerRequest(container_id=container), grpc.StatusCode.UNIMPLEMENTED)
    call("StopContainer", v1.StopContainerRequest(container_id=container, timeout=0))
    assert exited(container).exit_code == 137
    call("RemoveContainer", v1.RemoveContainerRequest(container_id=container))


def life():
    events = RUNTIME.GetContainerEvents(v1.GetEventsRequest())
    CALLED.add("GetContainerEvents")
    config = pod_config()
    pod = call("RunPodSandbox", v1.RunPodSandboxRequest(config=config)).pod_sandbox_id
    status = call("PodSandboxStatus", v1.PodSandboxStatusRequest(pod_sandbox_id=pod)).status
    assert (status.state, status.labels["app"]) == (v1.SANDBOX_READY, "py"), status
    wanted = v1.PodSandboxFilter(label_selector={"app": "py"})
    assert [p.id for p in call("ListPodSandbox", v1.ListPodSandboxRequest(filter=wanted)).items] == [pod]
    running(pod, config)
    limits = v1.LinuxContainerResources(memory_limit_in_bytes=256 << 20)
    call("UpdatePodSandboxResources", v1.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod, resources=limits))
    assert next(events).container_id, "no event has come"
    events.cancel()
    call("StopPodSandbox", v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    call("RemovePodSandbox", v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    refused("PodSandboxStatus", v1.PodSandboxStatusRequest(pod_sandbox_id=pod), grpc.StatusCode.NOT_FOUND)
    assert not call("ListPodSandbox", v1.ListPodSandboxRequest()).items


def main():
    node()
    images()
    life()
    known = {m.name for s in ("RuntimeService", "ImageService") for m in v1.DESCRIPTOR.services_by_name[s].methods}
    assert not known - CALLED, f"never called: {known - CALLED}"
    print("\n".join(sorted(CALLED)))


main()
