// One answer, from the request to its last token: asked for again while the server has no room for it.

import { explain, isPassing } from "./explain.js";
import { ServerError } from "./server.js";
import { count, rate } from "./units.js";

const PATIENCE_S = 300; // for a ring that recovers, or a queue that gets shorter

/**
 * Fills `turn` as tokens come, and calls `onChange(status)` after each: a sentence while there is no text to show.
 *
 * Throws `ServerError`, and `AbortError` where `signal` stopped it; the turn then has what came until then.
 */
export async function fillAnswer(turn, server, body, signal, onChange) {
    for (let waitedS = 0; ;) {
        try {
            await stream(turn, server.chat(body, signal), onChange);
            return;
        } catch (error) {
            if (!isPassing(error) || turn.content !== "" || waitedS >= PATIENCE_S) throw error;
            const waitS = Math.max(1, error.retryAfterS ?? 1);
            await countDown(waitS, signal, (leftS) => onChange(`${explain(error)} Trying again in ${leftS} s …`));
            waitedS += waitS;
        }
    }
}

async function stream(turn, chunks, onChange) {
    const begunMs = performance.now();
    let [firstMs, lastMs, usage, isWhole] = [null, null, null, false];
    onChange("Waiting for the first word …");
    for await (const chunk of chunks) {
        isWhole = chunk === null;
        usage = chunk?.usage ?? usage;
        const choice = chunk?.choices[0];
        if (choice?.finish_reason === "length") turn.note = "The answer ended at its limit of tokens.";
        if (!choice?.delta.content) continue;
        lastMs = performance.now();
        firstMs ??= lastMs;
        turn.content += choice.delta.content;
        onChange("");
    }
    if (!isWhole) throw new ServerError("the connection was closed");
    if (usage !== null && firstMs !== null)
        turn.facts = facts(usage, (firstMs - begunMs) / 1000, (lastMs - firstMs) / 1000);
}

function facts(usage, firstS, restS) {
    const n = usage.completion_tokens;
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const parts = [count(n, "token"), `first after ${firstS.toFixed(2)} s`];
    if (n > 1 && restS > 0) parts.push(`${rate((n - 1) / restS)} tokens/s`);
    if (cached > 0) parts.push(`${cached} of ${usage.prompt_tokens} prompt tokens reused`);
    return parts.join(" · ");
}

async function countDown(waitS, signal, onSecond) {
    for (let leftS = waitS; leftS > 0; leftS -= 1) {
        onSecond(leftS);
        await pause(1000, signal);
    }
}

function pause(ms, signal) {
    return new Promise((resolve, reject) => {
        signal.throwIfAborted();
        const timer = setTimeout(resolve, ms);
        signal.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
    });
}
