"""Echo over TCP and UDP: `serve PORT` on every address, or `ask PORT ADDR COUNT` so many of each at once.

Every connection sends octets of its own and must get the very same ones back.
"""
import asyncio
import random
import sys


class Echo(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.transport.sendto(data, peer)


class Ask(asyncio.DatagramProtocol):
    def __init__(self):
        self.got = asyncio.Queue()

    def datagram_received(self, data, _):
        self.got.put_nowait(data)


async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        pass
    finally:
        writer.close()


async def serve(port):
    loop = asyncio.get_running_loop()
    # Of both families by itself, which the listener is not: asyncio makes it IPv6's alone.
    await loop.create_datagram_endpoint(Echo, local_addr=("::", port))
    server = await asyncio.start_server(echo, ["0.0.0.0", "::"], port, backlog=1024)
    print("serving", flush=True)
    await server.serve_forever()


async def ask_tcp(addr, port, number):
    octets = random.Random(number)
    data = octets.randbytes(octets.choice([1, 1000, 30_000, 200_000]))
    reader, writer = await asyncio.open_connection(addr, port)

    async def send():
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sender = asyncio.create_task(send())
    got = await reader.read(-1)
    await sender
    writer.close()
    assert got == data, f"{number}: {len(got)} octets of {len(data)}"


async def ask_udp(addr, port, number):
    loop = asyncio.get_running_loop()
    transport, ask = await loop.create_datagram_endpoint(Ask, remote_addr=(addr, port))
    for question in (f"{number} {n}".encode() for n in range(3)):
        # A datagram may be lost where so many come at once; an answer may not be another's.
        for _ in range(10):
            transport.sendto(question)
            try:
                got = await asyncio.wait_for(ask.got.get(), 2)
            except asyncio.TimeoutError:
                continue
            assert got.startswith(f"{number} ".encode()), (question, got)
            if got == question:
                break
        else:
            raise AssertionError(f"{question}: no answer")
    transport.close()


async def ask(port, addr, count):
    both = (f(addr, port, n) for n in range(int(count)) for f in (ask_tcp, ask_udp))
    await asyncio.gather(*(asyncio.wait_for(one, 25) for one in both))
    print("answered", 2 * int(count), flush=True)


role, port, *rest = sys.argv[1:]
asyncio.run({"serve": serve, "ask": ask}[role](int(port), *rest))
