"""Chat templates that would take for ever or all memory, one for each way there is; and templates of real families."""

from __future__ import annotations

NEST = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}"
DOUBLE = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = "
HOSTILE = {
    "nested loops": NEST + "x" + "{% endfor %}" * 3,
    "an empty loop": NEST + "{% endfor %}" * 3,
    "a loop's condition": "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "doubled by tilde": DOUBLE + "ns.x ~ ns.x %}{% endfor %}",
    "doubled by plus": DOUBLE + "ns.x + ns.x %}{% endfor %}",
    "doubled by times": DOUBLE + "ns.x * 2 %}{% endfor %}",
    "doubled by format": DOUBLE + "'%s%s' % (ns.x, ns.x) %}{% endfor %}",
    "doubled by the format filter": DOUBLE + "'%s%s' | format(ns.x, ns.x) %}{% endfor %}",
    "doubled by the format method": DOUBLE + "'{0}{0}'.format(ns.x) %}{% endfor %}",
    "doubled by join": DOUBLE + "[ns.x, ns.x] | join %}{% endfor %}",
    "doubled by the join method": DOUBLE + "ns.x.join([ns.x, ns.x]) %}{% endfor %}",
    "doubled by replace": DOUBLE + "ns.x | replace('a', 'aa') %}{% endfor %}",
    "doubled by the replace method": DOUBLE + "ns.x.replace('a', 'aa') %}{% endfor %}",
    "replaced at every place": DOUBLE + "ns.x.replace('', ns.x) %}{% endfor %}",
    "doubled by a block": "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "doubled by a macro": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}"
    "{% for i in range(99) %}{% set ns.x = f(ns.x) %}{% endfor %}",
    "escaped again": DOUBLE + "(ns.x ~ '&') | escape | string | escape | string %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "a long list": "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "a nested list": "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "a nested list as text": "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{% set y = ns.x | string %}",
    "a nested list compared": "{% set ns = namespace(x=(1,), y=(1,)) %}{% for i in range(40) %}"
    "{% set ns.x = (ns.x, ns.x) %}{% set ns.y = (ns.y, ns.y) %}{% endfor %}{% if ns.x == ns.y %}{% endif %}",
    "a nested tuple as a key": "{% set ns = namespace(x=(1,)) %}{% for i in range(99999) %}{% set ns.x = (ns.x,) %}{% endfor %}"
    "{% set d = {ns.x: 1} %}",
    "a nested list as JSON": "{% set ns = namespace(x=[1]) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
    "{% set y = ns.x | tojson %}",
    "a namespace in itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "itself": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "itself twice": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(45) }}",
    "a recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "a block in itself": "{% block b %}{{ self.b() }}{% endblock %}",
    "times": "{{ 'a' * 10**9 }}",
    "times from the left": "{% set x = 10**9 * 'a' %}",
    "a list times": "{% set x = [1] * 10**9 %}",
    "power": "{% set x = 10 ** (10 ** 10) %}",
    "powers": "{% set ns = namespace(x=3) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "a width": "{% set x = '%1000000000d' % 1 %}",
    "a width given": "{% set x = '%*d' % (1000000000, 1) %}",
    "a width of the format method": "{% set x = '{:1000000000}'.format(1) %}",
    "a nested width": "{% set x = '{0:{1}}'.format(1, 1000000000) %}",
    "an indentation": "{% set x = ('a\n' * 9) | indent(10**9) %}",
    "digits": "{% set x = 1.5 | round(10**9, 'ceil') %}",
    "a JSON indentation": "{% set x = [[1]] | tojson(indent=10**9) %}",
    "a JSON separator": "{% set x = (range(9999) | list) | tojson(separators=['a' * 99999, '']) %}",
    "a range": "{% for x in range(10**9) %}{% endfor %}",
    "lists of lists": "{% for i in range(9999) %}{% set y = range(99999) | list %}{% endfor %}",
    "sum of lists": "{% set x = [['a' * 999] * 9999] * 9999 %}{% set y = x | sum(start=[]) %}",
    "a search": "{% set a = 'a' * 3000000 %}{% for i in range(999) %}{% set x = a.rfind('b' + 'a' * 1500000) %}{% endfor %}",
    "a strip": "{% set a = 'a' * 3000000 %}{% for i in range(999) %}{% set x = a.strip('b' * 1500000 + 'a') %}{% endfor %}",
    "a test": "{% set a = 'a' * 9999999 %}{% for i in range(99999) %}{% set x = a is eq(a ~ '') %}{% endfor %}",
    "slices": "{% set a = 'a' * 9999999 %}{% for i in range(99999) %}{% set x = a[1:] %}{% endfor %}",
    "a lazy chain": "{% for i in range(99999) %}{% set x = range(99999) | map('string') | select('string') | list %}{% endfor %}",
    "dates": "{% for i in range(99999) %}{% set x = strftime_now('%999999Y' * 99) %}{% endfor %}",
    "deep brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "a deep sum": "{{ " + "1+" * 5000 + "1 }}",
    "a long program": "{{ 1 }}" * 99999,
    "a million loops": "{% for x in range(9) %}" * 60 + "{% endfor %}" * 60,
}  # fmt: skip

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {{- message.tool_calls[0] | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
QWEN3 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or (not loop.last and reasoning_content)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, conversation roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}{{- "[AVAILABLE_TOOLS] " }}{%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}{%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"""
PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
VARIABLES = (
    "{% if tools is not none %}tools{% endif %}{% if documents is none %}no documents{% endif %}"
    "{% if bos_token is defined %}{{ bos_token }}{% endif %}{{ strftime_now('%Y-%m-%d') }}"
    "{% macro say(x, y='!') %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}"
    "{% call say('a') %}b{% endcall %}{% for m in messages if m.content %}{{ loop.cycle('1', '2') }}"
    "{{ m.content.upper() | indent(2) }}{{ m | tojson(indent=2) }}{{ '%s-%d' % (m.role, 3) }}{{ '{}:{:>4}'.format(m.role, 7) }}"
    "{{ m.content | replace('a', 'b') }}{{ m.items() | list }}{{ [1, 2] | map('string') | join(', ') }}{% else %}none{% endfor %}"
    "{{ dict(a=1) | items | list }}{{ 7 // 2 }}{{ 2 ** 10 }}{{ 7 % 4 }}{{ [3, 1, 2] | sort }}{{ messages | map(attribute='role') | unique | list }}"
)
REAL = {
    "llama3": LLAMA3, "qwen3": QWEN3, "mistral": MISTRAL, "gemma3": GEMMA, "phi3": PHI3, "variables": VARIABLES,
}  # fmt: skip
