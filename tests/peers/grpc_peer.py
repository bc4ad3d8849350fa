"""A gRPC server or client by grpcio, Google's own implementation in C, for the end-to-end tests.

    grpc_peer.py serve [CERTIFICATE KEY [CLIENT_CA]]   prints its port; echoes until it is killed
    grpc_peer.py call HOST:PORT [CA]                   makes one call for each line of standard input, and prints a
                                                       JSON line for each

A line is JSON: {"method": "Unary|Server|Client|Both", "messages": [...], "metadata": {...}}. The server answers what it
was sent, message by message, with the trailer `x-echo: METHOD` and what it was sent as `x-note`. The message "fail:N"
ends a call with the status N.
"""
import json
import sys
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2_grpc

SERVICE = "palisade.test.Echo"


def finish(method, context, message):
    note = dict(context.invocation_metadata()).get("x-note", "")
    context.set_trailing_metadata((("x-echo", method), ("x-note", note)))
    if message.startswith(b"fail:"):
        code = next(code for code in grpc.StatusCode if code.value[0] == int(message[5:]))
        context.abort(code, "as it was asked to")


def unary(message, context):
    finish("Unary", context, message)
    return message


def server(message, context):
    for piece in message.split(b","):
        finish("Server", context, piece)
        yield piece


def client(messages, context):
    joined = b",".join(messages)
    finish("Client", context, joined)
    return joined


def both(messages, context):
    for message in messages:
        finish("Both", context, message)
        yield message


def read(file):
    with open(file, "rb") as opened:
        return opened.read()


def serve(files):
    handlers = grpc.method_handlers_generic_handler(SERVICE, {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Server": grpc.unary_stream_rpc_method_handler(server),
        "Client": grpc.stream_unary_rpc_method_handler(client),
        "Both": grpc.stream_stream_rpc_method_handler(both),
    })
    echo = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
    echo.add_generic_rpc_handlers((handlers,))
    servicer = health.HealthServicer()
    servicer.set(SERVICE, 1)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, echo)
    if files:
        certificate, key, *client_ca = map(read, files)
        ca = client_ca[0] if client_ca else None
        credentials = grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=ca is not None)
        port = echo.add_secure_port("127.0.0.1:0", credentials)
    else:
        port = echo.add_insecure_port("127.0.0.1:0")
    echo.start()
    print(json.dumps({"message": "serving", "listen": f"127.0.0.1:{port}"}), flush=True)
    echo.wait_for_termination()


def call(target, ca):
    if ca:
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(read(ca)))
    else:
        channel = grpc.insecure_channel(target)
    for line in sys.stdin:
        wanted = json.loads(line)
        method, metadata = wanted["method"], tuple(wanted.get("metadata", {}).items())
        messages = [message.encode() for message in wanted["messages"]]
        path = f"/{SERVICE}/{method}"
        streams_in, streams_out = method in ("Client", "Both"), method in ("Server", "Both")
        kinds = {(False, False): channel.unary_unary, (False, True): channel.unary_stream,
                 (True, False): channel.stream_unary, (True, True): channel.stream_stream}
        made = kinds[streams_in, streams_out](path)
        request = iter(messages) if streams_in else messages[0]
        try:
            if streams_out:
                answered = made(request, metadata=metadata, timeout=20)
                got, trailers = [piece.decode() for piece in answered], answered.trailing_metadata()
            else:
                answer, details = made.with_call(request, metadata=metadata, timeout=20)
                got, trailers = [answer.decode()], details.trailing_metadata()
            print(json.dumps({"status": "OK", "messages": got, "trailers": dict(trailers)}), flush=True)
        except grpc.RpcError as error:
            print(json.dumps({"status": error.code().name, "details": error.details(),
                              "trailers": dict(error.trailing_metadata() or ())}), flush=True)


if sys.argv[1] == "serve":
    serve(sys.argv[2:])
else:
    call(sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
