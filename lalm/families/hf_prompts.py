"""The text around the audios, as each model's own chat puts it; every audio is one placeholder token.

Without an instruction it is the user's turn with the audios alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ChatTokens:
    """A tokenizer with the chat template of its checkpoint, and the placeholder of an audio."""

    tokenizer: Any
    chat_template: str | None
    audio_token: str

    def render(self, conversation: list[dict[str, Any]]) -> str:
        """The text of a conversation, up to where the answer begins.

        Raises:
            ValueError: the checkpoint has no chat template.
        """
        text: str = self.tokenizer.apply_chat_template(
            conversation, chat_template=self.chat_template, tokenize=False, add_generation_prompt=True
        )
        return text


Prompt = Callable[[ChatTokens, str | None, int], str]


def chat(tokens: ChatTokens, instruction: str | None, num_audios: int) -> str:
    """Parts of type audio and text in one user turn."""
    content: list[dict[str, str]] = [{"type": "audio", "audio": ""}] * num_audios
    if instruction is not None:
        content = [*content, {"type": "text", "text": instruction}]
    return tokens.render([{"role": "user", "content": content}])


def string_chat(tokens: ChatTokens, instruction: str | None, num_audios: int) -> str:
    """A user turn that is one string, for templates that know no parts."""
    content = tokens.audio_token * num_audios + (instruction or "")
    return tokens.render([{"role": "user", "content": content}])


def system_chat(tokens: ChatTokens, instruction: str | None, num_audios: int) -> str:
    """The instruction as the system's turn, for templates that drop text beside audio."""
    audios = [{"type": "audio", "audio": ""}] * num_audios
    conversation: list[dict[str, Any]] = [{"role": "user", "content": audios}]
    if instruction is not None:
        conversation.insert(0, {"role": "system", "content": instruction})
    return tokens.render(conversation)


def mistral_chat(tokens: ChatTokens, instruction: str | None, num_audios: int) -> str:
    """Mistral's turn, for a tokenizer file (tekken.json) that has no template."""
    audios = f"[BEGIN_AUDIO]{tokens.audio_token}" * num_audios
    return f"<s>[INST]{audios}{instruction or ''}[/INST]"
