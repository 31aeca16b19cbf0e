"""Both runs of conformance.sh: the echo's path, then the cases to leave out."""

import asyncio
import collections
import subprocess
import sys
import time

import kosoku

AS_ASKED = ["OK", "NON-STRICT", "INFORMATIONAL", "UNIMPLEMENTED"]
# Sections that nothing of ours implements. Anywhere else UNIMPLEMENTED is a failure.
COMPRESSION = {12, 13}
PARALLEL = 4
DEADLINE_S = 300


async def as_server(echo, excluded):
    server = subprocess.Popen([echo, "serve", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        address = server.stdout.readline().split()[-1]
        run = kosoku.run_fuzzingclient(address, None, excluded, concurrency=PARALLEL)
        return await asyncio.wait_for(run, DEADLINE_S)
    except kosoku.FailureError as failure:
        return failure.results
    finally:
        server.kill()
        server.wait()


async def as_client(echo, excluded):
    try:
        async with kosoku.run_fuzzingserver(None, excluded, host="127.0.0.1", port=0) as server:
            url = f"ws://{server.address}:{server.port}"
            client = await asyncio.create_subprocess_exec(echo, "run", url, stdout=subprocess.DEVNULL)
            try:
                if await asyncio.wait_for(client.wait(), DEADLINE_S) != 0:
                    sys.exit("conformance: the echo failed")
            finally:
                if client.returncode is None:
                    client.kill()
            return await asyncio.wait_for(server.get_result(), 10)
    except kosoku.FailureError as failure:
        return failure.results


def section(result):
    return int(result.case_id.split(".")[0])


def is_as_asked(result):
    if result.behavior.value == "UNIMPLEMENTED" and section(result) not in COMPRESSION:
        return False
    return result.behavior.value in AS_ASKED and result.behavior_close.value in ("OK", "INFORMATIONAL")


def report(role, results, took_s):
    print(f"\necho as a {role}: {len(results)} cases in {took_s:.1f} s")
    print("section" + "".join(f"{name:>15}" for name in AS_ASKED + ["other"]))
    counts = collections.Counter()
    for result in results:
        counts[section(result), result.behavior.value if is_as_asked(result) else "other"] += 1
    for number in sorted({number for number, _ in counts}):
        print(f"{number:>7}" + "".join(f"{counts[number, name]:>15}" for name in AS_ASKED + ["other"]))
    bad = [result for result in results if not is_as_asked(result)]
    for result in bad:
        verdict = f"{result.behavior.value}, close {result.behavior_close.value}"
        print(f"{result.case_id}: {verdict}: {' '.join(result.description.split())}")
    return bad or not results


async def main():
    echo, *excluded = sys.argv[1:]
    failed = False
    for role, run in [("server", as_server), ("client", as_client)]:
        began = time.monotonic()
        results = await run(echo, excluded or None)
        failed |= bool(report(role, results, time.monotonic() - began))
    sys.exit("conformance: cases are not as the standard asks" if failed else 0)


asyncio.run(main())
