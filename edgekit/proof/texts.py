"""Prompts and plain text for the proof of a model without held-out data of its own.

They were written for this purpose. The prompts ask for short answers, so that most end within a few tokens.
"""

from __future__ import annotations

from edgekit.data.rows import Message

PROMPTS = [
    "What is the capital of France? Answer with one word.",
    "Say hello.",
    "Is ice colder than water? Answer yes or no.",
    "What is 7 + 5? Give only the number.",
    "Name one colour of the rainbow.",
    "Repeat after me: the door is open.",
    "Translate to Spanish: good morning.",
    "Write the word 'lamp' in capital letters.",
    "How many days does a week have?",
    "Finish the sentence: The sun rises in the",
    "Give the plural of 'mouse'.",
    "Which animal barks? One word.",
    "Name the largest ocean.",
    "Thanks, that is all for today.",
    "What is the opposite of 'early'?",
    "Who are you?",
    "List three fruits.",
    "Is 17 a prime number? Answer yes or no.",
    "What do bees make?",
    "Write one short sentence about rain.",
    "What is H2O called in everyday language?",
    "Turn this into JSON with the key city: Oslo",
    "Which month comes after June?",
    "Correct the spelling: recieve",
    "What colour is grass? One word.",
    "Say goodbye.",
    "Is the sun a planet? Answer yes or no.",
    "What is 9 - 4? Give only the number.",
    "Name one season.",
    "Repeat after me: seven green bottles.",
    "Write the word 'Paper' in small letters.",
    "What is the first letter of the alphabet?",
]

STORY = (
    "The workshop at the end of the harbour road opens before the ferries do. Marta sweeps the floor, checks the kettle, "
    "and reads the list that the night shift has left under the clock: two pumps to seal, a cracked housing, a radio that "
    "answers only when it is cold. She begins with the radio, because a thing that fails for no reason will keep her "
    "thinking until she knows the reason. By noon she has found it, a joint so fine that the warmth of a hand closes it "
    "and the wind from the water opens it again. She writes the cause on a card, because the next person deserves to know, "
    "and because a fault that nobody writes down comes back. In the afternoon the rain moves in from the west, and the "
    "cranes stop one after another until only the gulls are left to argue. Her brother brings bread and asks, as he does "
    "every week, why she does not sell the place and buy a boat. She says that a boat is only a workshop that sinks, and "
    "they eat without speaking while the gutters fill and the lamps along the quay come on, one by one, each a little "
    "later than the one before."
)
ESSAY = (
    "A lever balances when the product of force and distance is the same on both sides of its pivot. A child of 20 kg who "
    "sits 3 m from the middle of a seesaw holds up an adult of 60 kg at a distance of 1 m. Nothing is gained: the child's "
    "end moves three times as far as the adult's, so the work done on each side is equal. The same trade appears in gears, "
    "in pulleys and in hydraulic presses, where a narrow piston is pushed a long way so that a wide one rises a little. "
    "Friction takes its share in every real machine, and the ratio of the work that comes out to the work that goes in is "
    "called its efficiency. A bicycle chain in good order wastes about two per cent, a worm gear half or more. Engineers "
    "choose the wasteful gear where the loss is useful: a worm gear cannot be driven backwards, so a lift that uses one "
    "stays where it is when the motor stops. Measured values are given with their uncertainty, for example 9.81 ± 0.02 "
    "metres per second squared, because a number without it cannot be compared with another."
)
MIXED = (
    "def moving_average(values, width):\n"
    '    """Return the mean of each window of `width` values."""\n'
    "    if width < 1:\n"
    "        raise ValueError('width must be at least 1')\n"
    "    total = sum(values[:width])\n"
    "    result = [total / width]\n"
    "    for new, old in zip(values[width:], values):\n"
    "        total += new - old\n"
    "        result.append(total / width)\n"
    "    return result\n\n\n"
    "for line in open('readings.csv'):\n"
    "    name, *numbers = line.strip().split(',')\n"
    "    series = [float(number) for number in numbers]\n"
    "    print(f'{name}: {moving_average(series, 5)[-1]:.2f}')\n\n"
    "# Release notes, version 2.4\n\n"
    "- The import dialog remembers the last folder (#181).\n"
    "- Files larger than 2 GB are read in blocks; memory stays below 64 MB.\n"
    "- Fixed: a date such as 2024-02-29 was refused in leap years.\n\n"
    '{"station": "north-4", "readings": [{"t": "06:00", "c": 11.5}, {"t": "07:00", "c": 12.25}], "ok": true}\n\n'
    "Dear Ms Okafor,\n\nthank you for your letter of 3 May. The two invoices you mention (nos. 4471 and 4479) were paid on "
    "28 April; I enclose the bank's confirmation. Please let me know if anything is still open.\n\nKind regards"
)
TEXTS = [STORY, ESSAY, MIXED]


def conversations() -> list[list[Message]]:
    """The prompts as conversations: each alone, some with a system message, and one of several turns."""
    asked: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    system: Message = {"role": "system", "content": "You answer in one short sentence."}
    turns: list[Message] = [
        *asked[1],
        {"role": "assistant", "content": "Hello! What can I do for you?"},
        *asked[16],
        {"role": "assistant", "content": "Apples, pears and plums."},
        *asked[13],
    ]
    return [*asked, *([system, *conversation] for conversation in asked[:4]), turns, [system, *turns]]
