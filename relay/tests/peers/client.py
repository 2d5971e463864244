"""Talks to an agent behind the bridge with the official client: client.py ADDRESS TOKEN."""

import asyncio
import sys

import httpx
from a2a.client import A2ACardResolver, ClientConfig, ClientFactory
from a2a.client.errors import A2AClientError
from a2a.types.a2a_pb2 import CancelTaskRequest, GetTaskRequest, Message, Part, Role, SendMessageRequest, TaskState


def text_of(task):
    return "".join(part.text for artifact in task.artifacts for part in artifact.parts)


async def send(client, text, context=None, waits=True):
    message = Message(message_id=f"m-{text}", role=Role.ROLE_USER, parts=[Part(text=text)])
    if context:
        message.context_id = context
    request = SendMessageRequest(message=message)
    request.configuration.return_immediately = not waits
    answers = [answer async for answer in client.send_message(request)]
    assert len(answers) == 1, answers
    return answers[0].task


async def main():
    address, token = sys.argv[1:]
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}, timeout=30) as http:
        card = await A2ACardResolver(http, address).get_agent_card()
        assert card.name and card.skills[0].id == "chess", card
        client = ClientFactory(ClientConfig(httpx_client=http)).create(card)

        first = await send(client, "hello")
        assert first.status.state == TaskState.TASK_STATE_COMPLETED, first
        assert text_of(first) == "you said: hello", first
        again = await send(client, "again", context=first.context_id)
        assert again.context_id == first.context_id and text_of(again) == "you said: again", again
        known = await client.get_task(GetTaskRequest(id=first.id))
        assert known.id == first.id and text_of(known) == "you said: hello", known

        running = await send(client, "say nothing", waits=False)
        assert running.status.state == TaskState.TASK_STATE_WORKING, running
        ended = await client.cancel_task(CancelTaskRequest(id=running.id))
        assert ended.status.state == TaskState.TASK_STATE_CANCELED, ended
        try:
            raise AssertionError(await client.get_task(GetTaskRequest(id="nobody's")))
        except A2AClientError:
            pass
    print("served")


asyncio.run(main())
