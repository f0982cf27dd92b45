// What the page shows is in the address, after "#": every view is a link.
"use strict";

dcsft.route = (() => {
  const DEFAULTS = {
    view: "board", board: "0", q: "", rows: "all", groups: "id,ood,other,standing", value: "accuracy",
    sort: "", dir: "", page: "0", a: "", b: "", task: "", changed: "", verdict: "all", difficulty: "all",
    differ: "all", find: "", item: "", boxes: "1", intervals: "1",
  };

  function read(hash) {
    const given = new URLSearchParams(hash.replace(/^#/, ""));
    const found = { ...DEFAULTS };
    for (const key of Object.keys(DEFAULTS)) {
      const value = given.get(key);
      if (value !== null) found[key] = value;
    }
    return found;
  }

  function address(state) {
    const said = new URLSearchParams();
    for (const key of Object.keys(DEFAULTS)) {
      if (state[key] !== DEFAULTS[key]) said.set(key, state[key]);
    }
    return "#" + said.toString();
  }

  // [state, go, link]: go(change) moves there; go(change, true) leaves no step in the history.
  function useRoute() {
    const [state, set] = preactHooks.useState(() => read(location.hash));
    preactHooks.useEffect(() => {
      const follow = () => set(read(location.hash));
      addEventListener("hashchange", follow);
      return () => removeEventListener("hashchange", follow);
    }, []);
    const go = (change, quietly) => {
      const next = address({ ...read(location.hash), ...change });
      if (quietly) location.replace(next);
      else location.hash = next;
      set(read(location.hash));
    };
    const link = (change) => address({ ...state, ...change });
    return [state, go, link];
  }

  return { read, address, useRoute };
})();
