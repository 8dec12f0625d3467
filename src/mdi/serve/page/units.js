// Numbers as people read them. What is null is not known.

const UNKNOWN = "–";

export function bytes(n) {
    if (n === null) return UNKNOWN;
    const units = ["B", "kB", "MB", "GB", "TB"];
    const power = n < 1000 ? 0 : Math.min(units.length - 1, Math.floor(Math.log10(n) / 3));
    const value = n / 1000 ** power;
    return `${power === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[power]}`;
}

export function seconds(s) {
    if (s < 10) return `${s.toFixed(1)} s`;
    if (s < 120) return `${Math.round(s)} s`;
    return s < 7200 ? `${Math.round(s / 60)} min` : `${Math.round(s / 3600)} h`;
}

export function rate(perSecond) {
    if (perSecond === null) return UNKNOWN;
    return perSecond >= 100 ? String(Math.round(perSecond)) : perSecond.toFixed(1);
}

export function percent(share) {
    if (share === null) return UNKNOWN;
    return `${Math.round(100 * share)}%`;
}

export function count(n, noun) {
    if (n === null) return `${UNKNOWN} ${noun}s`;
    return `${n} ${noun}${n === 1 ? "" : "s"}`;
}

/** The layers of a half-open span, the last one included: as in the program's messages. */
export function layers(span) {
    if (span === null || span[0] === span[1]) return "none";
    return span[1] - span[0] === 1 ? String(span[0]) : `${span[0]}–${span[1] - 1}`;
}
