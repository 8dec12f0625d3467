// The conversation on the page: its turns, the answer that grows, and the view that follows it.

import { KeyedChildren } from "./dom.js";
import { TurnView } from "./turn_view.js";

export class ChatView {
    #root;
    #end;
    #announcer;
    #onBusy;
    #views = new Map();
    #children;
    #isFollowing = true;
    #frame = null;

    /**
     * `root` is the section of the chat; `end` an element behind the last turn; `actions` what a turn can do;
     * `onBusy(isBusy)` is called when an answer begins and ends.
     */
    constructor({ root, log, end, announcer, actions, onBusy }) {
        this.#root = root;
        this.#end = end;
        this.#announcer = announcer;
        this.#onBusy = onBusy;
        this.#children = new KeyedChildren(
            log,
            (turn) => turn,
            (turn) => this.#create(turn, actions),
        );
        new IntersectionObserver(([entry]) => (this.#isFollowing = entry.isIntersecting), {
            rootMargin: "80px",
        }).observe(end);
    }

    #create(turn, actions) {
        const view = new TurnView(turn, actions);
        this.#views.set(turn, view);
        return view;
    }

    show(turns) {
        this.#children.update(turns);
        for (const turn of this.#views.keys()) if (!turns.includes(turn)) this.#views.delete(turn);
        this.#root.classList.toggle("unused", turns.length === 0);
        this.#setBusy(false);
        this.#follow();
    }

    begin(turns) {
        this.show(turns);
        this.#setBusy(true);
        this.#views.get(turns.at(-1)).isGrowing = true;
        this.#announcer.beginAnswer();
        this.#isFollowing = true;
        this.#follow();
    }

    /** Shows what has come, once per frame at most: tokens may come faster. */
    grow(turn, status) {
        this.#announcer.follow(turn.content);
        if (this.#frame !== null) cancelAnimationFrame(this.#frame);
        this.#frame = requestAnimationFrame(() => {
            this.#frame = null;
            this.#views.get(turn)?.update(turn, status);
            this.#follow();
        });
    }

    end(turns, turn) {
        if (this.#frame !== null) cancelAnimationFrame(this.#frame);
        this.#frame = null;
        this.#views.get(turn).isGrowing = false;
        this.#announcer.endAnswer(turn.content, turn.problem ?? turn.note);
        this.show(turns);
    }

    #setBusy(isBusy) {
        for (const view of this.#views.values()) view.isBusy = isBusy;
        this.#onBusy(isBusy);
    }

    /** Keeps the end in view, unless the reader has scrolled away from it. */
    #follow() {
        if (this.#isFollowing) this.#end.scrollIntoView({ block: "end" });
    }
}
