(* Every transition of Pages.v keeps the invariants, second part: VMs that come and go, lending, and all of it together. *)
Require Import NArith List Lia Bool.
Require Import Pages Invariants PagesProofs.
Import ListNotations.
Local Open Scope N_scope.

(* ---- a VM comes --------------------------------------------------------------------------------------------------- *)

Lemma donate_pages_keeps : forall l s v s', PagesInv s -> donate_pages s v l = Done s' -> PagesInv s'.
Proof.
  induction l; cbn; intros s v s' I H; checks; auto.
  eapply IHl; [|exact H]. eapply donate_pool_page_keeps; eauto.
Qed.

Lemma new_vm_keeps : forall s v k n, PagesInv s -> get (vms s) v = None -> 1 <= v <= 127 ->
  PagesInv (set_vm s v (mkVm k n empty false [])).
Proof.
  intros s v k n I V Id. set (vm' := mkVm _ _ _ _ _). constructor; try apply I; cbn [vms set_vm with_vms].
  - intro p. change (state (set_vm s v vm') p) with (state s p). rewrite <- (lent_count _ I p). unfold loans. change (held (set_vm s v vm') p) with (held s p). cbn [vms set_vm with_vms].
    rewrite (total_new (vm_loans p) s v vm' V). unfold vm_loans at 2. destruct k; cbn; rewrite ?total_empty; lia.
  - intro p. change (state (set_vm s v vm') p) with (state s p). rewrite <- (core_count _ I p). unfold claims. change (owned (set_vm s v vm') p) with (owned s p). cbn [vms set_vm with_vms].
    rewrite (total_new (vm_claims p) s v vm' V). change (vm_claims p vm') with 0. lia.
  - intros w vm g p G K T. rewrite get_set in G. destruct (N.eqb_spec v w) as [<-|].
    + injection G as <-. cbn in T. rewrite get_empty in T. discriminate.
    + exact (vm_iso _ I _ _ _ _ G K T).
  - intros p w g B. apply (placed _ I) in B as (vm & G & K & T). exists vm. rewrite get_set.
    destruct (N.eqb_spec v w); [congruence | auto].
  - intros w vm g p G T. rewrite get_set in G. destruct (N.eqb_spec v w) as [<-|].
    + injection G as <-. cbn in T. rewrite get_empty in T. discriminate.
    + exact (windows_no_ram _ I _ _ _ _ G T).
  - intros w vm g l G T. rewrite get_set in G. destruct (N.eqb_spec v w) as [<-|].
    + injection G as <-. cbn in T. rewrite get_empty in T. discriminate.
    + exact (in_size _ I _ _ _ _ G T).
  - intros w vm G. rewrite get_set in G. destruct (N.eqb_spec v w) as [<-|]; [exact Id | exact (vm_ids _ I _ _ G)].
Qed.

Lemma register_vm_table_keeps : forall s v k bits root s', PagesInv s ->
  register_vm_table s v k bits root = Done s' -> PagesInv s'.
Proof.
  intros s v k bits root s' I H. unfold register_vm_table in H. checks.
  eapply donate_pages_keeps; [|exact H]. apply new_vm_keeps; auto.
  apply andb_true_iff in E as [A B]. apply N.leb_le in A, B. auto.
Qed.

(* ---- lending ------------------------------------------------------------------------------------------------------ *)

Lemma lend_more : forall s p, (state s p = Host \/ exists n, state s p = Lent n /\ n < 255) ->
  forall q, state (lend_once_more s p) q = if p =? q then Lent (lent_times (state s p) + 1) else state s q.
Proof.
  intros s p H q. unfold lend_once_more. rewrite state_set. destruct H as [H|(n & H & _)]; rewrite H; reflexivity.
Qed.

Lemma lend_less : forall s p n, state s p = Lent n ->
  forall q, state (lend_once_less s p) q = if p =? q then (if n =? 1 then Host else Lent (n - 1)) else state s q.
Proof. intros s p n H q. unfold lend_once_less. rewrite H, state_set. reflexivity. Qed.

Lemma lend_less_fields : forall s p, let s' := lend_once_less s p in
  ram s' = ram s /\ windows s' = windows s /\ host s' = host s /\ vms s' = vms s /\ mailboxes s' = mailboxes s /\
  own s' = own s /\ contents s' = contents s /\ ia_bits s' = ia_bits s.
Proof. intros. unfold s', lend_once_less. destruct (state s p); cbn; auto 9. Qed.

Lemma no_claims : forall st v g, core_times st = 0 -> lent_times st <> 0 -> ~ belongs st v g.
Proof. destruct st; cbn; intros; intro; lia. Qed.

Lemma hold_mailbox_keeps : forall s p s', PagesInv s -> hold_mailbox s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. unfold hold_mailbox in H. checks. apply may_lend_ok in E as (Z & R & S).
  set (s' := with_mailboxes _ _).
  assert (St : forall q, state s' q = if p =? q then Lent (lent_times (state s p) + 1) else state s q)
    by (apply (lend_more s p S)).
  assert (Ho : host s' = host s) by reflexivity.
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply same_vms. reflexivity.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl. destruct S as [->|(n & -> & _)]; reflexivity.
  - congruence.
  - intros _. rewrite R, St, N.eqb_refl. reflexivity.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    assert (O : held s' q = if p =? q then held s p + 1 else held s q)
      by (unfold held at 1; cbn; rewrite get_set; destruct (p =? q); reflexivity).
    rewrite O. change (owned s' q) with (owned s q). change (vms s') with (vms s).
    destruct (N.eqb_spec p q) as [<-|]; auto.
    destruct S as [S|(n & S & ?)]; rewrite S in *; cbn [lent_times core_times times_ok] in *; repeat split; auto; lia.
Qed.

(* One of those for whom the page is lent lets it go. *)
Lemma less_numbers : forall s s' p, PagesInv s -> loans s p <> 0 ->
  (forall q, state s' q = state (lend_once_less s p) q) ->
  (forall q, loans s' q + (if p =? q then 1 else 0) = loans s q) -> (forall q, claims s' q = claims s q) ->
  (exists n, state s p = Lent n /\ 1 <= n <= 255) /\ forall q, numbers s' q.
Proof.
  intros s s' p I N0 St L C.
  assert (S : exists n, state s p = Lent n /\ 1 <= n <= 255).
  { rewrite (lent_count _ I p) in N0. pose proof (counts_ok _ I p) as T. destruct (state s p); try (contradiction N0; reflexivity). eauto. }
  split; auto. destruct S as (n & S & B). intro q. destruct (inv_numbers s I q) as (L' & C' & T').
  unfold numbers. rewrite St, (lend_less s p n S), C. specialize (L q).
  destruct (N.eqb_spec p q) as [E|]; [subst q|].
  - rewrite S in L', C', T'. cbn [lent_times core_times times_ok] in L', C', T'.
    destruct (N.eqb_spec n 1); cbn [lent_times core_times times_ok]; repeat split; auto; lia.
  - rewrite N.add_0_r in L. rewrite L. auto.
Qed.

Lemma drop_mailbox_keeps : forall s p s', PagesInv s -> drop_mailbox s p = Done s' -> PagesInv s'.
Proof.
  intros s p s' I H. unfold drop_mailbox in H. checks. apply N.eqb_neq in E0.
  set (s' := with_mailboxes _ _).
  destruct (lend_less_fields s p) as (F1 & F2 & F3 & F4 & F5 & F6 & _ & _).
  assert (St : forall q, state s' q = state (lend_once_less s p) q) by reflexivity.
  assert (Hd : forall q, held s' q + (if p =? q then 1 else 0) = held s q).
  { intro q. unfold held at 1. unfold s'. cbn [mailboxes with_mailboxes].
    destruct (N.eqb_spec (held s p - 1) 0); rewrite ?get_set, ?get_remove; destruct (N.eqb_spec p q) as [<-|]; try lia;
      fold (held s q); lia. }
  destruct (less_numbers s s' p I) as ((n & S & B) & Nu); auto.
  { unfold loans. lia. }
  { intro q. unfold loans. specialize (Hd q). change (vms s') with (vms (lend_once_less s p)). rewrite F4. lia. }
  { intro q. unfold claims, owned. change (vms s') with (vms (lend_once_less s p)).
    change (own s') with (own (lend_once_less s p)). rewrite F4, F6. reflexivity. }
  apply (change_keeps s s' p I). apply tables_change; auto.
  - apply same_vms. exact F4.
  - intros q m. rewrite St, (lend_less s p n S). destruct (N.eqb_spec p q); congruence.
  - intros v g. rewrite St, (lend_less s p n S), N.eqb_refl, S. destruct (n =? 1); reflexivity.
  - intros ->. rewrite (page_zero _ I) in S. discriminate.
  - intros q G _. change (host s') with (host (lend_once_less s p)) in G. rewrite F3 in G. exact G.
  - intros _. rewrite E, St, (lend_less s p n S), N.eqb_refl. destruct (n =? 1); reflexivity.
Qed.

(* ---- changes of one VM's table that leave the RAM of protected VMs as it is --------------------------------------- *)

Lemma table_change : forall s s' p v vm vm', PagesInv s -> get (vms s) v = Some vm -> vms s' = set (vms s) v vm' ->
  kind vm' = kind vm -> size vm' = size vm ->
  (kind vm = Protected -> forall g q, get (table vm') g = Some (Ram q) <-> get (table vm) g = Some (Ram q)) ->
  (forall g l, get (table vm') g = Some l -> get (table vm) g = Some l \/
     g < size vm /\ match l with Window q => is_ram s q = false | Ram _ => True end) ->
  ram s' = ram s -> windows s' = windows s -> host s' = host s ->
  (forall q, q <> p -> state s' q = state s q) ->
  (forall v g, belongs (state s p) v g <-> belongs (state s' p) v g) ->
  (p = 0 -> state s' p = Host) -> (state s' p <> Host -> is_ram s p = true) ->
  (host_may_access (state s p) = true -> host_may_access (state s' p) = true) ->
  (forall q, numbers s' q) -> PagesInv s'.
Proof.
  intros s s' p v vm vm' I V Vs K Sz Tp Tl A B Ho St Bp Z Is Acc Nu.
  assert (Bq : forall q w g, belongs (state s q) w g <-> belongs (state s' q) w g).
  { intros q w g. destruct (N.eq_dec q p) as [->|n]; [apply Bp | rewrite (St _ n); tauto]. }
  apply (change_keeps s s' p I). constructor; auto.
  - rewrite Ho. auto.
  - rewrite Ho. intro G. apply (host_iso _ I) in G. destruct (is_ram s p); auto.
  - rewrite Vs. intros w x g q G Kx T. rewrite get_set in G. apply Bq. destruct (N.eqb_spec v w) as [E|n].
    + subst w. injection G as <-. apply (vm_iso _ I _ _ _ _ V); [congruence|]. apply Tp; [congruence | exact T].
    + apply (vm_iso _ I _ _ _ _ G Kx T).
  - intros q w g X. apply Bq in X. apply (placed _ I) in X as (x & G & Kx & T). rewrite Vs, get_set.
    destruct (N.eqb_spec v w) as [E|n]; [subst w | exists x; auto].
    rewrite V in G. injection G as <-. exists vm'. repeat split; [congruence | apply Tp; auto].
  - rewrite Vs. intros w x G. rewrite get_set in G. destruct (N.eqb_spec v w) as [E|n].
    + subst w. injection G as <-. split; [exact (vm_ids _ I _ _ V)|]. rewrite Sz. split; intros.
      * destruct (Tl _ _ H) as [O|[O _]]; [exact (in_size _ I _ _ _ _ V O) | exact O].
      * destruct (Tl _ _ H) as [O|[_ O]]; [exact (windows_no_ram _ I _ _ _ _ V O) | exact O].
    + split; [exact (vm_ids _ I _ _ G)|]. split; intros; [exact (in_size _ I _ _ _ _ G H) | exact (windows_no_ram _ I _ _ _ _ G H)].
Qed.

Lemma ordinary : forall k : VmKind, k = Ordinary -> k <> Protected.
Proof. intros. congruence. Qed.

Lemma lend_keeps : forall s v g p s', PagesInv s -> lend s v g p = Done s' -> PagesInv s'.
Proof.
  intros s v g p s' I H. unfold lend in H. checks.
  apply of_kind_ok in E as (V & K & _). apply may_lend_ok in E0 as (Z & R & S). apply prepare_ok in E1 as (Sz & Free).
  set (s' := set_vm _ _ _).
  assert (St : forall q, state s' q = if p =? q then Lent (lent_times (state s p) + 1) else state s q)
    by (apply (lend_more s p S)).
  apply (table_change s s' p v a (with_table a (set (table a) g (Ram p)))); auto.
  - congruence.
  - cbn. intros g' l. rewrite get_set. destruct (N.eqb_spec g g'); intro X; [injection X as <-; subst; auto | auto].
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl. destruct S as [->|(n & -> & _)]; reflexivity.
  - congruence.
  - intros _. rewrite St, N.eqb_refl. reflexivity.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_table a (set (table a) g (Ram p)))).
    rewrite (loans_set_leaf q _ _ _ _ _ V Free), K, (claims_same q _ _ _ (with_table a _) V eq_refl). cbn [leaf_is].
    destruct (N.eqb_spec p q) as [<-|]; [|rewrite N.add_0_r; auto].
    destruct S as [S|(n & S & ?)]; rewrite S in *; cbn [lent_times core_times times_ok] in *; repeat split; auto; lia.
Qed.

(* An ordinary VM's leaf goes: for take_back and clear_vm_page. *)
Lemma leaf_goes : forall s s' v g p vm vm', PagesInv s -> get (vms s) v = Some vm -> kind vm = Ordinary ->
  get (table vm) g = Some (Ram p) -> table vm' = remove (table vm) g -> kind vm' = kind vm -> size vm' = size vm ->
  given vm' = given vm -> ram s' = ram s -> windows s' = windows s -> host s' = host s -> own s' = own s ->
  mailboxes s' = mailboxes s -> vms s' = set (vms s) v vm' ->
  (forall q, state s' q = state (lend_once_less s p) q) -> PagesInv s'.
Proof.
  intros s s' v g p vm vm' I V K Lf T' K' Sz' G' A1 A2 A3 A4 A5 Vs St.
  assert (Lq : forall q, loans s' q + (if p =? q then 1 else 0) = loans s q).
  { intro q. unfold loans, held. rewrite A5, Vs. pose proof (loans_remove_leaf q s v vm vm' g _ V Lf K' T') as X.
    rewrite K in X. cbn [leaf_is] in X. lia. }
  destruct (less_numbers s s' p I) as ((n & S & B) & Nu); auto.
  { specialize (Lq p). rewrite N.eqb_refl in Lq. lia. }
  { intro q. unfold claims, owned. rewrite A4, Vs, (claims_same q s v vm vm' V G'). reflexivity. }
  apply (table_change s s' p v vm vm'); auto.
  - congruence.
  - rewrite T'. intros g' l. rewrite get_remove. destruct (N.eqb_spec g g'); [discriminate | auto].
  - intros q m. rewrite St, (lend_less s p n S). destruct (N.eqb_spec p q); congruence.
  - intros w h. rewrite St, (lend_less s p n S), N.eqb_refl, S. destruct (n =? 1); reflexivity.
  - intros ->. rewrite (page_zero _ I) in S. discriminate.
  - intros _. apply I. congruence.
  - intros _. rewrite St, (lend_less s p n S), N.eqb_refl. destruct (n =? 1); reflexivity.
Qed.

Lemma take_back_keeps : forall s v g s', PagesInv s -> take_back s v g = Done s' -> PagesInv s'.
Proof.
  intros s v g s' I H. unfold take_back in H. checks; auto. apply of_kind_ok in E as (V & K & _).
  destruct (lend_less_fields s pfn) as (F1 & F2 & F3 & F4 & F5 & F6 & _ & _).
  eapply leaf_goes with (v := v) (vm := a) (vm' := with_table a (remove (table a) g)); eauto; try reflexivity.
  cbn. rewrite F4. reflexivity.
Qed.

Lemma map_vm_io_keeps : forall s v g p s', PagesInv s -> map_vm_io s v g p = Done s' -> PagesInv s'.
Proof.
  intros s v g p s' I H. unfold map_vm_io in H. checks. apply live_ok in E as (V & _). apply prepare_ok in E1 as (Sz & Free).
  set (s' := set_vm _ _ _).
  apply (table_change s s' 0 v a (with_table a (set (table a) g (Window p)))); auto.
  - intros _ g' q. cbn. rewrite get_set. destruct (N.eqb_spec g g') as [->|]; [|tauto]. rewrite Free. split; discriminate.
  - cbn. intros g' l. rewrite get_set. destruct (N.eqb_spec g g'); intro X; [injection X as <-; subst; auto | auto].
  - reflexivity.
  - intros _. exact (page_zero _ I).
  - intro X. apply (ram_only _ I). exact X.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *.
    change (state s' q) with (state s q). change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_table a (set (table a) g (Window p)))).
    rewrite (loans_set_leaf q _ _ _ _ _ V Free), (claims_same q _ _ _ (with_table a _) V eq_refl). cbn [leaf_is].
    destruct (kind a); rewrite N.add_0_r; auto.
Qed.

(* ---- a VM goes ---------------------------------------------------------------------------------------------------- *)

Lemma cut_vm_keeps : forall s v, PagesInv s -> PagesInv (cut_vm s v).
Proof.
  intros s v I. unfold cut_vm. destruct (get (vms s) v) as [vm|] eqn:V; auto.
  set (s' := set_vm _ _ _). apply (table_change s s' 0 v vm (with_cut vm)); auto.
  - intros. reflexivity.
  - reflexivity.
  - intros _. exact (page_zero _ I).
  - intro X. apply (ram_only _ I). exact X.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *.
    change (state s' q) with (state s q). change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_cut vm)).
    rewrite (loans_same q s v vm (with_cut vm) V eq_refl eq_refl), (claims_same q s v vm (with_cut vm) V eq_refl). auto.
Qed.

Lemma clear_vm_page_keeps : forall s v g, PagesInv s -> PagesInv (clear_vm_page s v g).
Proof.
  intros s v g I. unfold clear_vm_page. destruct (get (vms s) v) as [vm|] eqn:V; auto.
  set (vm' := with_table _ _). set (s1 := set_vm _ _ _).
  assert (Plain : (forall p, get (table vm) g <> Some (Ram p)) -> PagesInv s1).
  { intro NoRam. apply (table_change s s1 0 v vm vm'); auto.
    - intros _ g' q. cbn. rewrite get_remove. destruct (N.eqb_spec g g') as [->|]; [|tauto].
      split; [discriminate | intro X; destruct (NoRam _ X)].
    - intros g' l. cbn. rewrite get_remove. destruct (N.eqb_spec g g'); [discriminate | auto].
    - reflexivity.
    - intros _. exact (page_zero _ I).
    - intro X. apply (ram_only _ I). exact X.
    - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *.
      change (state s1 q) with (state s q). change (held s1 q) with (held s q). change (owned s1 q) with (owned s q).
      change (vms s1) with (set (vms s) v vm'). rewrite (claims_same q s v vm vm' V eq_refl).
      destruct (get (table vm) g) as [l|] eqn:Lf.
      + pose proof (loans_remove_leaf q s v vm vm' g l V Lf eq_refl eq_refl) as X.
        destruct l; [destruct (NoRam pfn); reflexivity|]. cbn [leaf_is] in X.
        replace (total (vm_loans q) (set (vms s) v vm')) with (total (vm_loans q) (vms s)) by (destruct (kind vm); lia). auto.
      + pose proof (total_vm (vm_loans q) s v vm vm' V) as X.
        pose proof (total_remove (leaf_is q) (table vm) g) as Y. unfold at_key in Y. rewrite Lf, N.add_0_r in Y.
        assert (Same : vm_loans q vm' = vm_loans q vm) by (unfold vm_loans; cbn; destruct (kind vm); auto).
        replace (total (vm_loans q) (set (vms s) v vm')) with (total (vm_loans q) (vms s)) by lia. auto. }
  destruct (get (table vm) g) as [[p|p]|] eqn:Lf; [|apply Plain; discriminate..].
  destruct (kind vm) eqn:K.
  - pose proof (vm_iso _ I _ _ _ _ V K Lf) as B0.
    assert (NH : state s p <> Host) by (intro X; rewrite X in B0; exact B0).
    destruct (not_host s p I NH) as [Z R].
    set (s' := set_pfn_state _ _ _).
    assert (St : forall q, state s' q = if p =? q then Host else state s q) by (intro; apply (state_set (scrub s1 p))).
    apply (change_keeps s s' p I). constructor; auto; try reflexivity.
    + intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
    + contradiction.
    + intros _. rewrite R, St, N.eqb_refl. reflexivity.
    + intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
      change (held s' q) with (held s q). change (owned s' q) with (owned s q). change (vms s') with (set (vms s) v vm').
      rewrite (claims_same q s v vm vm' V eq_refl).
      pose proof (loans_remove_leaf q s v vm vm' g _ V Lf eq_refl eq_refl) as X. rewrite K, N.add_0_r in X. rewrite X.
      destruct (N.eqb_spec p q) as [<-|]; auto.
      destruct (state s p); cbn [belongs lent_times core_times times_ok] in *; tauto.
    + change (vms s') with (set (vms s) v vm'). intros w x h q G Kx T. rewrite get_set in G. rewrite St.
      assert (Old : get (vms s) w = Some x \/ w = v /\ x = vm') by (destruct (N.eqb_spec v w); [injection G as <-|]; auto).
      assert (B : belongs (state s q) w h /\ (w = v -> h <> g)).
      { destruct (N.eqb_spec v w) as [E|n].
        - subst w. injection G as <-. cbn in T. rewrite get_remove in T. destruct (N.eqb_spec g h); [discriminate|].
          split; [exact (vm_iso _ I _ _ _ _ V K T) | congruence].
        - split; [exact (vm_iso _ I _ _ _ _ G Kx T) | congruence]. }
      destruct B as [B Ne]. destruct (N.eqb_spec p q) as [E|n]; auto.
      subst q. destruct (belongs_once _ _ _ _ _ B B0). tauto.
    + intros q w h. rewrite St. destruct (N.eqb_spec p q) as [E|n]; [intros []|]. intro B.
      pose proof B as B'. apply (placed _ I) in B' as (x & G & Kx & T). change (vms s') with (set (vms s) v vm'). rewrite get_set.
      destruct (N.eqb_spec v w) as [E|n']; [subst w | exists x; auto].
      rewrite V in G. injection G as <-. exists vm'. repeat split; [exact K|]. cbn. rewrite get_remove.
      destruct (N.eqb_spec g h) as [E|]; [|exact T]. subst h. congruence.
    + change (vms s') with (set (vms s) v vm'). intros w x G. rewrite get_set in G. destruct (N.eqb_spec v w) as [E|n].
      * subst w. injection G as <-. split; [exact (vm_ids _ I _ _ V)|].
        split; cbn; intros h y T; rewrite get_remove in T; destruct (N.eqb_spec g h); try discriminate;
          [exact (in_size _ I _ _ _ _ V T) | exact (windows_no_ram _ I _ _ _ _ V T)].
      * split; [exact (vm_ids _ I _ _ G)|]. split; intros; [exact (in_size _ I _ _ _ _ G H) | exact (windows_no_ram _ I _ _ _ _ G H)].
  - destruct (lend_less_fields s1 p) as (F1 & F2 & F3 & F4 & F5 & F6 & _ & _).
    eapply (leaf_goes s _ v g p vm vm'); eauto; try reflexivity.
    intro q. unfold lend_once_less. change (state s1 p) with (state s p). destruct (state s p); reflexivity.
Qed.

Lemma clear_vm_range_keeps : forall s v, PagesInv s -> PagesInv (clear_vm_range s v).
Proof.
  intros s v I. unfold clear_vm_range. destruct (get (vms s) v); auto.
  apply (cut_vm_keeps s v) in I. revert I. generalize (cut_vm s v). induction (entries (table v0)) as [|e l IH]; cbn; intros; auto.
  apply IH, clear_vm_page_keeps, I.
Qed.

Lemma release_keeps : forall s v, PagesInv s -> PagesInv (release s v).
Proof.
  intros s v I. unfold release. destruct (get (vms s) v) as [vm|] eqn:V; auto. destruct (given vm) as [|p rest] eqn:G; auto.
  set (s' := set_vm _ _ _).
  assert (S : state s p = Core).
  { pose proof (core_count _ I p) as C. pose proof (total_at (vm_claims p) _ _ _ V) as X. unfold claims in C.
    unfold vm_claims at 1 in X. rewrite G in X. cbn [count] in X. rewrite N.eqb_refl in X.
    destruct (state s p); cbn [core_times] in C; auto; lia. }
  assert (R : is_ram s p = true) by (apply I; congruence).
  assert (St : forall q, state s' q = if p =? q then Host else state s q) by (intro; apply (state_set (scrub s p))).
  apply (change_keeps s s' p I). apply tables_change; auto; try reflexivity.
  - apply (same_vm s s' v vm (with_given vm rest)); auto.
  - intros q n. rewrite St. destruct (N.eqb_spec p q); congruence.
  - intros. rewrite St, N.eqb_refl, S. reflexivity.
  - intros. rewrite St, N.eqb_refl. reflexivity.
  - intros _. rewrite R, St, N.eqb_refl. reflexivity.
  - intro q. destruct (inv_numbers s I q) as (L & C & T). unfold numbers, loans, claims in *. rewrite St.
    change (held s' q) with (held s q). change (owned s' q) with (owned s q).
    change (vms s') with (set (vms s) v (with_given vm rest)).
    rewrite (loans_same q s v vm (with_given vm rest) V eq_refl eq_refl).
    pose proof (total_vm (vm_claims q) s v vm (with_given vm rest) V) as X.
    unfold vm_claims at 2 4 in X. rewrite G in X. cbn [given with_given count] in X.
    destruct (N.eqb_spec p q) as [<-|]; [rewrite S in *; cbn [lent_times core_times times_ok] in *|]; repeat split; auto; lia.
Qed.

(* After as many releases as it has pages, a VM has none. *)
Lemma release_all_keeps : forall n s v vm, PagesInv s -> get (vms s) v = Some vm -> length (given vm) = n ->
  let s' := release_all n s v in
  PagesInv s' /\ get (vms s') v = Some (with_given vm []).
Proof.
  induction n; intros s v vm I V L; cbn.
  - split; auto. destruct vm as [k z t c [|]]; [exact V | discriminate].
  - destruct (given vm) as [|p rest] eqn:G; [discriminate|]. injection L as L.
    apply (IHn (release s v) v (with_given vm rest)); auto.
    + apply release_keeps, I.
    + unfold release. rewrite V, G. cbn. rewrite get_set, N.eqb_refl. reflexivity.
Qed.

Lemma free_vm_table_keeps : forall s v s', PagesInv s -> free_vm_table s v = Done s' -> PagesInv s'.
Proof.
  intros s v s' I H. unfold free_vm_table in H. checks. rename v0 into vm.
  destruct (release_all_keeps _ s v vm I E eq_refl) as (J & V). set (t := release_all _ _ _) in *. clearbody t.
  assert (No : forall k, get (table vm) k = None) by (apply is_empty_get, E0).
  constructor; try apply J; cbn [vms with_vms].
  - intro p. change (state (with_vms t (remove (vms t) v)) p) with (state t p). rewrite <- (lent_count _ J p).
    unfold loans. change (held (with_vms t (remove (vms t) v)) p) with (held t p). cbn [vms with_vms].
    pose proof (total_remove (vm_loans p) (vms t) v) as X. unfold at_key in X. rewrite V in X.
    replace (vm_loans p (with_given vm [])) with 0 in X; [lia|]. unfold vm_loans. cbn. destruct (kind vm); auto.
    symmetry. apply total_0. intros k a G. rewrite No in G. discriminate.
  - intro p. change (state (with_vms t (remove (vms t) v)) p) with (state t p). rewrite <- (core_count _ J p).
    unfold claims. change (owned (with_vms t (remove (vms t) v)) p) with (owned t p). cbn [vms with_vms].
    pose proof (total_remove (vm_claims p) (vms t) v) as X. unfold at_key in X. rewrite V in X. cbn in X. lia.
  - intros w x g p G K T. rewrite get_remove in G. destruct (N.eqb_spec v w); [discriminate | exact (vm_iso _ J _ _ _ _ G K T)].
  - intros p w g B. apply (placed _ J) in B as (x & G & K & T). exists x. rewrite get_remove.
    destruct (N.eqb_spec v w) as [E1|]; auto. subst w. rewrite V in G. injection G as <-. cbn in T. rewrite No in T. discriminate.
  - intros w x g p G T. rewrite get_remove in G. destruct (N.eqb_spec v w); [discriminate | exact (windows_no_ram _ J _ _ _ _ G T)].
  - intros w x g l G T. rewrite get_remove in G. destruct (N.eqb_spec v w); [discriminate | exact (in_size _ J _ _ _ _ G T)].
  - intros w x G. rewrite get_remove in G. destruct (N.eqb_spec v w); [discriminate | exact (vm_ids _ J _ _ G)].
Qed.

Lemma boot_inv : forall ram windows bits, PagesInv (boot ram windows bits).
Proof.
  intros ram0 windows0 bits.
  assert (S : forall p, state (boot ram0 windows0 bits) p = Host) by (intro; unfold state; cbn; rewrite get_empty; reflexivity).
  constructor; intros; rewrite ?S in *; cbn in *; rewrite ?get_empty in *; try contradiction; try discriminate; auto.
  - unfold loans, held. cbn. rewrite get_empty. reflexivity.
  - unfold claims, owned. cbn. rewrite get_empty. reflexivity.
Qed.

Lemma page_step_keeps : forall s op, PagesInv s -> PagesInv (page_step s op).
Proof.
  intros s op I. unfold page_step. destruct (perform s op) as [s'|] eqn:H; [|exact I].
  destruct op; cbn [perform] in H.
  - exact (map_page_host_keeps _ _ _ I H).
  - injection H as <-. apply forget_keeps, I.
  - exact (host_store_keeps _ _ _ _ I H).
  - exact (assign_page_to_core_keeps _ _ _ I H).
  - exact (return_page_to_host_keeps _ _ _ I H).
  - exact (register_vm_table_keeps _ _ _ _ _ _ I H).
  - exact (donate_pool_page_keeps _ _ _ _ I H).
  - exact (assign_keeps _ _ _ _ _ _ I H).
  - exact (grant_keeps _ _ _ _ I H).
  - exact (revoke_keeps _ _ _ _ I H).
  - exact (hold_mailbox_keeps _ _ _ I H).
  - exact (drop_mailbox_keeps _ _ _ I H).
  - exact (lend_keeps _ _ _ _ _ I H).
  - exact (take_back_keeps _ _ _ _ I H).
  - exact (map_vm_io_keeps _ _ _ _ _ I H).
  - injection H as <-. apply cut_vm_keeps, I.
  - injection H as <-. apply clear_vm_page_keeps, I.
  - injection H as <-. apply clear_vm_range_keeps, I.
  - exact (free_vm_table_keeps _ _ _ I H).
  - exact (vm_store_keeps _ _ _ _ _ I H).
Qed.

(* ---- what follows from the invariants ------------------------------------------------------------------------------ *)

Lemma host_maps_nothing_private : forall s p v g, PagesInv s ->
  state s p = Core \/ state s p = Private v g -> get (host s) p = None.
Proof.
  intros s p v g I S. destruct (get (host s) p) eqn:H; [|reflexivity].
  pose proof (host_iso _ I p) as X. rewrite H in X. specialize (X ltac:(discriminate)).
  rewrite (ram_only _ I) in X by (destruct S; congruence). destruct S as [S|S]; rewrite S in X; discriminate.
Qed.

Lemma ordinary_maps_lent : forall s v vm g p, PagesInv s ->
  get (vms s) v = Some vm -> kind vm = Ordinary -> get (table vm) g = Some (Ram p) -> exists n, state s p = Lent n.
Proof.
  intros s v vm g p I V K T. pose proof (lent_count _ I p) as L. unfold loans in L.
  pose proof (total_at (vm_loans p) _ _ _ V) as X. unfold vm_loans at 1 in X. rewrite K in X.
  pose proof (total_at (leaf_is p) _ _ _ T) as Y. cbn [leaf_is] in Y. rewrite N.eqb_refl in Y.
  destruct (state s p); cbn [lent_times] in L; eauto; lia.
Qed.

Lemma own_page_in_one_place : forall s v w vm wm g h p, PagesInv s ->
  get (vms s) v = Some vm -> kind vm = Protected -> get (table vm) g = Some (Ram p) ->
  get (vms s) w = Some wm -> get (table wm) h = Some (Ram p) -> v = w /\ g = h.
Proof.
  intros s v w vm wm g h p I V K T W T'. pose proof (vm_iso _ I _ _ _ _ V K T) as B. destruct (kind wm) eqn:K'.
  - exact (belongs_once _ _ _ _ _ B (vm_iso _ I _ _ _ _ W K' T')).
  - destruct (ordinary_maps_lent _ _ _ _ _ I W K' T') as [n S]. rewrite S in B. destruct B.
Qed.

Lemma no_vm_maps_core : forall s v vm g p, PagesInv s ->
  get (vms s) v = Some vm -> get (table vm) g = Some (Ram p) -> state s p <> Core.
Proof.
  intros s v vm g p I V T S. destruct (kind vm) eqn:K.
  - pose proof (vm_iso _ I _ _ _ _ V K T) as B. rewrite S in B. exact B.
  - destruct (ordinary_maps_lent _ _ _ _ _ I V K T) as [n S']. congruence.
Qed.
