import pandas as pd
import pytest

import llmlab
from llmlab.accessor import SeriesAccessor
from llmlab.clock import run_virtual
from llmlab.sim import Simulator


def make_lab() -> llmlab.Lab:
    return llmlab.Lab("openai:m", transport=Simulator(seed=1), progress=False)


def test_a_frame_is_answered_row_by_row_with_its_own_index() -> None:
    frame = pd.DataFrame({"review": ["good", "bad"]}, index=["x", "y"])

    async def main() -> pd.DataFrame:
        job: llmlab.Job[pd.DataFrame] = frame.llm.run(make_lab(), template="Classify: {review}")
        return await job

    out = run_virtual(main)
    assert out.index.tolist() == ["x", "y"]
    assert out.prompt.tolist() == ["Classify: good", "Classify: bad"]
    assert out.llm.summary().equals(llmlab.summary(out))


def test_a_column_is_answered() -> None:
    prompts = pd.Series(["a", "b"], index=[7, 8])

    async def main() -> pd.DataFrame:
        job: llmlab.Job[pd.DataFrame] = SeriesAccessor(prompts).run(make_lab())
        assert isinstance(prompts.llm, SeriesAccessor)
        return await job

    assert run_virtual(main).index.tolist() == [7, 8]


def test_only_a_lab_can_answer() -> None:
    with pytest.raises(TypeError, match=r"llm.run takes the lab that answers, as in df.llm.run\(lab\), not str"):
        pd.DataFrame({"prompt": ["a"]}).llm.run("openai:m")


def test_a_frame_that_is_no_result_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no column 'status'"):
        pd.DataFrame({"prompt": ["a"]}).llm.summary()
