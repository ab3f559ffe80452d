"""How a page begins: the words of its tab, and where the eye and the keyboard stand when it opens."""

from __future__ import annotations

import json

import streamlit as st

# Each page opens at its top with the heading in focus, wherever the one before was left: a browser knows nothing of a change
# of page within one document. The heading is waited for, since what is drawn before it may come later than this. What
# scrolls can be reached with the keyboard, whenever it is drawn: Streamlit's tables and code cannot.
_AT_THE_TOP = """
<script>
(() => {
  const {page, language} = %s;
  document.documentElement.lang = language;
  if (!window.tunebookWatch) {
    let waiting = false;
    const reach = () => {
      waiting = false;
      for (const box of document.querySelectorAll('.stTable > div, .stCode pre, [data-testid="stHtml"] .scrolls'))
        if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
    };
    window.tunebookWatch = new MutationObserver(() => {
      if (!waiting) { waiting = true; setTimeout(reach, 300); }
    });
    window.tunebookWatch.observe(document.body, {childList: true, subtree: true});
  }
  if (window.tunebookPage === page) return;
  const first = window.tunebookPage === undefined;
  window.tunebookPage = page;
  if (!first && matchMedia('(max-width: 768px)').matches)
    document.querySelector('[data-testid="stSidebarCollapseButton"] button')?.click();
  let tries = 0;
  const look = () => {
    const main = document.getElementById('stMain');
    const heading = main?.querySelector('h1');
    if (!heading || heading.dataset.stale === 'true') {
      if (tries++ < 100) setTimeout(look, 50);
      return;
    }
    main.scrollTo({top: 0});
    if (document.activeElement === document.body || !main.contains(document.activeElement)) {
      heading.setAttribute('tabindex', '-1');
      heading.focus({preventScroll: true});
    }
  };
  look();
})();
</script>
"""


def page(path: str, title: str) -> None:
    """Begin a page: the title of its tab, and the script that brings the browser to its top."""
    st.set_page_config(page_title=f"{title} · Tunebook" if path else title)
    st.session_state["has_heading"] = False
    facts = json.dumps({"page": path, "language": st.session_state["language"]})
    with st.container(key="page_opens"):
        st.html(_AT_THE_TOP % facts.replace("<", "\\u003c"), unsafe_allow_javascript=True)
