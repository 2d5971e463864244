"""Drives the server with the reference client: client.py stdio COMMAND | client.py http URL TOKEN."""

import asyncio
import sys

from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client


def transport():
    kind, target, *rest = sys.argv[1:]
    if kind == "stdio":
        return StdioServerParameters(command=target)
    client = create_mcp_http_client(headers={"Authorization": f"Bearer {rest[0]}"})
    return streamable_http_client(target, http_client=client)


async def converse(mode, version):
    async with Client(transport(), mode=mode) as client:
        assert client.protocol_version == version, client.protocol_version
        names = [tool.name for tool in (await client.list_tools()).tools]
        assert len(names) == 11 and names[1] == "threadline_send", names
        answer = await client.call_tool("threadline_send", {"agentId": "bob", "message": "hi"})
        assert not answer.is_error and answer.structured_content["reply"] == "you said: hi", answer
        refusal = await client.call_tool("threadline_send", {"agentId": "eve", "message": "hi"})
        assert refusal.is_error, refusal
        assert refusal.structured_content["error"]["code"] == "agent-not-found", refusal
        assert refusal.content[0].text.startswith("Error: there is no agent"), refusal


async def main():
    await converse("auto", "2026-07-28")
    await converse("legacy", "2025-11-25")


asyncio.run(main())
